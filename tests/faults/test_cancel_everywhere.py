"""Cancel at the first await, at the second, ... until a run ends before it could be cancelled.

A cancellation is the one thing that can hit any await there is. So every one of them is hit, in a
request that borrows, asks, commits and returns, and after each of these runs everything has to be
where it was.
"""

from __future__ import annotations

import asyncio
import gc
import random
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import anyio
import psycopg_pool
import pytest

import lifeguard
from lifeguard.testing import Postgres
from tests.endings.server import http_only, run, scope

MAX = 2


@types.coroutine
def at_each_await(
    coroutine: Coroutine[Any, Any, Any], reached: Callable[[int], None]
) -> Generator[Any, Any, Any]:
    """Run *coroutine* and call *reached* with 1, 2, ... each time it is about to wait."""
    number = 0
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            if error is None:
                waits_for = coroutine.send(value)
            else:
                thrown, error = error, None
                try:
                    waits_for = coroutine.throw(thrown)
                finally:
                    del thrown  # no cycle: what is tested here is also who keeps what alive
        except StopIteration as stop:
            return stop.value
        number += 1
        reached(number)
        try:
            value = yield waits_for
        except BaseException as exc:
            error = exc


class Canceller:
    """Cancels a request at its n-th await, in one of the ways there are."""

    def __init__(self, flavour: str) -> None:
        self.flavour = flavour

    async def run(self, request: Coroutine[Any, Any, Any], at: int) -> bool:
        """Run *request*, cancelled at await number *at*. False if it ended before that."""
        happened = False
        task = scope_ = None

        def reached(number: int) -> None:
            nonlocal happened
            again = self.flavour == "task.cancel twice" and number == at + 1
            if number != at and not again:
                return
            happened = True
            if self.flavour == "anyio scope":
                assert scope_ is not None
                scope_.cancel()
            else:
                assert task is not None
                task.cancel()

        async def main() -> None:
            nonlocal scope_
            with anyio.CancelScope() as scope_:
                await at_each_await(request, reached)

        task = asyncio.get_running_loop().create_task(main())
        await asyncio.wait((task,))
        if not task.cancelled() and task.exception() is not None:
            # psycopg may find its connection closed under it by a second cancellation. That is an
            # end like any other. What it must not be is anything of ours.
            error = task.exception()
            assert not isinstance(error, lifeguard.LifeguardError), error
        return happened


class Work:
    """The ways of using a pool in a request."""

    def __init__(self, guard: lifeguard.Lifeguard, pool: Any, log: list[str]) -> None:
        self.guard = guard
        self.pool = pool
        self.log = log

    def register(self) -> None:
        """One sync and one async callback, which have to run whatever happens."""

        async def second() -> None:
            await asyncio.sleep(0)
            self.log.append("async callback")

        self.guard.callback(self.log.append, "sync callback")
        self.guard.callback(second)

    async def in_a_block(self) -> None:
        async with self.pool.connection() as conn:
            await conn.execute("INSERT INTO cancelled VALUES (1)")
            await conn.commit()

    async def by_hand(self) -> None:
        conn = await self.pool.getconn()
        try:
            await conn.execute("INSERT INTO cancelled VALUES (1)")
            await conn.commit()
        finally:
            await self.pool.putconn(conn)

    async def forgetful(self) -> None:
        conn = await self.pool.getconn()
        await conn.execute("INSERT INTO cancelled VALUES (1)")

    async def by_hand_and_released(self) -> None:
        conn = await self.pool.getconn()
        await conn.execute("INSERT INTO cancelled VALUES (1)")
        await self.guard.arelease()


async def has_all_its_places(pool: Any) -> bool:
    """Whether the pool can lend MAX connections at the same time."""
    held = []
    try:
        for _ in range(MAX):
            held.append(await pool.getconn(timeout=3))  # noqa: PERF401
    except psycopg_pool.PoolTimeout:
        return False
    finally:
        for conn in held:
            await pool.putconn(conn)
    return True


@pytest.mark.filterwarnings("ignore::lifeguard.LeakWarning")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("flavour", ["task.cancel", "task.cancel twice", "anyio scope"])
@pytest.mark.parametrize("way", ["in_a_block", "by_hand", "forgetful", "by_hand_and_released"])
@pytest.mark.parametrize("cls", ["AsyncConnectionPool", "AsyncNullConnectionPool"])
def test_cancelled_at_every_await(
    cls: str, way: str, flavour: str, loop: str, pg: Postgres, dsn: str, appname: str
) -> None:
    """Wherever the cancellation hits: both callbacks ran once if they were registered, no unit is
    left, the pool can lend as many as before, and nothing is left idle in transaction."""
    with pg.connect() as setup:
        setup.execute("CREATE TABLE IF NOT EXISTS cancelled (x int)")
    guard = lifeguard.Lifeguard(handle_sigterm=False, grace=10)
    log: list[str] = []

    async def main() -> None:
        sizes = {} if "Null" in cls else {"min_size": 1}
        pool = getattr(psycopg_pool, cls)(dsn, open=False, max_size=MAX, timeout=5, **sizes)
        work = Work(guard, pool, log)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            work.register()
            await getattr(work, way)()

        served = guard.wrap(http_only(app), resources=[pool])
        canceller = Canceller(flavour)
        async with guard.worker(resources=[pool]):
            await served(scope(), None, None)  # joins the worker; nothing to cancel yet
            assert log == ["async callback", "sync callback"]
            for number in range(1, 200):
                log.clear()
                happened = await canceller.run(served(scope(), None, None), number)
                assert log == ["async callback", "sync callback"], number
                assert guard._worker.running() == [], number
                assert await has_all_its_places(pool), f"lost a place at await {number}"
                if not happened:
                    break
            else:
                raise AssertionError("the request did not end in 200 awaits")
            with pg.connect() as watcher:
                in_transaction = watcher.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE starts_with(application_name, %s)"
                    " AND state LIKE 'idle in transaction%%'",
                    [appname],
                ).fetchone()
            assert in_transaction == (0,)
            assert number > 3  # it was really cancelled in several places

    run(loop, main)
    gc.collect()  # psycopg's own cycle, bare as well: a connect() that is cancelled half-way
    assert pg.wait_count(0, prefix=appname) == 0


@pytest.mark.filterwarnings("ignore::lifeguard.LeakWarning")
@pytest.mark.parametrize("flavour", ["task.cancel", "task.cancel twice", "anyio scope"])
@pytest.mark.parametrize("cls", ["AsyncConnectionPool", "AsyncNullConnectionPool"])
def test_a_crowd_that_is_cancelled_anywhere(
    cls: str, flavour: str, pg: Postgres, dsn: str, appname: str
) -> None:
    """Three hundred requests, eight at a time on two connections, so that they wait for the pool
    and for its lock, each cancelled at some await: no place is lost."""
    with pg.connect() as setup:
        setup.execute("CREATE TABLE IF NOT EXISTS cancelled (x int)")
    guard = lifeguard.Lifeguard(handle_sigterm=False, grace=10)
    log: list[str] = []
    chance = random.Random(7)
    ways = ("in_a_block", "by_hand", "forgetful", "by_hand_and_released")

    async def main() -> None:
        sizes = {} if "Null" in cls else {"min_size": 1}
        pool = getattr(psycopg_pool, cls)(dsn, open=False, max_size=MAX, timeout=5, **sizes)
        work = Work(guard, pool, log)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            work.register()
            await getattr(work, scope["path"])()

        served = guard.wrap(http_only(app), resources=[pool])
        async with guard.worker(resources=[pool]):
            places = asyncio.Semaphore(8)

            async def request() -> None:
                async with places:
                    one = served(scope(path=chance.choice(ways)), None, None)
                    await Canceller(flavour).run(one, chance.randrange(1, 12))

            await asyncio.gather(*(request() for _ in range(300)))
            assert guard._worker.running() == []
            assert await has_all_its_places(pool), pool.get_stats()

    run("asyncio", main)
    gc.collect()
    assert sorted(log) == sorted(["sync callback", "async callback"] * (len(log) // 2))
    assert len(log) > 300  # most of them got as far as registering
    assert pg.wait_count(0, prefix=appname) == 0


@pytest.mark.parametrize("flavour", ["task.cancel", "task.cancel twice", "anyio scope"])
def test_opening_cancelled_at_every_await(
    flavour: str, pg: Postgres, dsn: str, appname: str
) -> None:
    """A worker whose opening is cancelled anywhere leaves no connection, and the next one opens."""

    async def main() -> None:
        canceller = Canceller(flavour)
        for number in range(1, 200):
            guard = lifeguard.Lifeguard(handle_sigterm=False, grace=5)
            pool = psycopg_pool.AsyncConnectionPool(dsn, open=False, min_size=1, max_size=MAX)

            async def opening(guard: Any = guard, pool: Any = pool) -> None:
                async with guard.worker(resources=[pool]):
                    pass

            happened = await canceller.run(opening(), number)
            if guard._worker.state.name == "open":  # cancelled late: it is open, and stays so
                await guard._worker.aclose()
            assert pool.closed, number
            gc.collect()  # see above
            assert pg.wait_count(0, prefix=appname) == 0, number
            async with guard.worker(resources=[pool]):
                assert await has_all_its_places(pool)
            if not happened:
                break
        else:
            raise AssertionError("opening did not end in 200 awaits")
        assert number > 3

    run("asyncio", main)


def test_the_canceller_cancels() -> None:
    """The instrument itself: an unguarded request that is cancelled at each await never gets to
    what comes after, and the number of runs is the number of awaits plus one."""
    log: list[int] = []

    async def request() -> None:
        for number in range(5):
            log.append(number)
            await asyncio.sleep(0)
        log.append(99)

    async def main() -> int:
        number = 1
        while await Canceller("task.cancel").run(request(), number):
            assert log == list(range(number))
            log.clear()
            number += 1
        return number

    assert asyncio.run(main()) == 6
    assert log[-1] == 99
