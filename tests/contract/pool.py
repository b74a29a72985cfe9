"""The contract of a pool adapter: inherit, say how your pool is made and used, and run.

Everything is asked of a real PostgreSQL, and of the pool's public face.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import time
import traceback
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

import lifeguard
from lifeguard.testing import Postgres

MAX = 3


class Fixture:
    """What a test of the contract works with: the guard, the pool, and the server's own view."""

    def __init__(self, pg: Postgres, appname: str, guard: lifeguard.Lifeguard, pool: Any) -> None:
        self.pg = pg
        self.appname = appname
        self.guard = guard
        self.pool = pool

    def backends(self) -> int:
        """How many connections the server has from this test."""
        return self.pg.count(prefix=self.appname)

    def settled(self, count: int) -> int:
        return self.pg.wait_count(count, prefix=self.appname)

    def idle_in_transaction(self) -> int:
        with self.pg.connect() as watcher:
            row = watcher.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE starts_with(application_name, %s) AND state LIKE 'idle in transaction%%'",
                [self.appname],
            ).fetchone()
        assert row is not None
        return int(row[0])


def drive(main: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits: sync pools need no event loop, and must not get one."""
    try:
        main.send(None)
    except StopIteration as stop:
        return stop.value
    main.close()
    raise AssertionError("a sync pool waited for an event loop")


class PoolContract:
    """What lifeguard promises of a pool, whatever library it is from."""

    is_async = False  #: whether it is used with ``await``
    keeps = True  #: whether it keeps connections that nobody uses
    full: type[Exception]  #: what :meth:`borrow` raises where no place is free
    stale = "closed"  #: what is said to whoever kept a connection beyond its unit

    # -- what the author of an adapter says ----------------------------------------------------

    def make(self, dsn: str, max_size: int) -> Any:
        """A pool that is not open yet."""
        raise NotImplementedError

    async def open(self, pool: Any) -> None:
        """Open it as users do without lifeguard."""
        raise NotImplementedError

    async def close(self, pool: Any) -> None:
        """Close it as users do without lifeguard."""
        raise NotImplementedError

    def is_closed(self, pool: Any) -> bool:
        raise NotImplementedError

    async def borrow(self, pool: Any) -> Any:
        """Take a connection out, within 2 s or with an exception."""
        raise NotImplementedError

    async def give_back(self, pool: Any, conn: Any) -> None:
        raise NotImplementedError

    async def ask(self, conn: Any, query: str) -> Any:
        """The first column of the first row."""
        raise NotImplementedError

    def out(self, pool: Any) -> int:
        """How many places of the pool are taken, as far as the pool knows."""
        raise NotImplementedError

    # -- what the tests below are written with -------------------------------------------------

    def run(self, main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return asyncio.run(main()) if self.is_async else drive(main())

    @contextlib.asynccontextmanager
    async def unit(self, guard: lifeguard.Lifeguard, name: str = "a unit") -> AsyncIterator[Any]:
        if self.is_async:
            async with guard.unit(name) as unit:
                yield unit
        else:
            with guard.unit(name) as unit:
                yield unit

    @contextlib.asynccontextmanager
    async def worker(self, fixture: Fixture) -> AsyncIterator[Any]:
        block = fixture.guard.worker(resources=[fixture.pool])
        if self.is_async:
            async with block as worker:
                yield worker
        else:
            with block as worker:
                yield worker

    async def pid(self, conn: Any) -> int:
        return int(await self.ask(conn, "SELECT pg_backend_pid()"))

    async def leak(self, fixture: Fixture) -> Any:
        """Borrow in a unit and forget it, expecting to hear of it."""
        with pytest.warns(lifeguard.LeakWarning):
            async with self.unit(fixture.guard):
                return await self.borrow(fixture.pool)

    async def nothing_is_out(self, fixture: Fixture) -> None:
        """The pool knows that all is back, as soon as it has made up for what was closed."""
        deadline = time.monotonic() + 5
        while self.out(fixture.pool) != 0 and time.monotonic() < deadline:
            await self.pause()
        assert self.out(fixture.pool) == 0

    async def pause(self) -> None:
        if self.is_async:
            await asyncio.sleep(0.005)
        else:
            time.sleep(0.005)  # noqa: ASYNC251

    async def all_places_are_free(self, fixture: Fixture) -> bool:
        """Whether the pool can lend as many connections as it may, at the same time."""
        held = [await self.borrow(fixture.pool) for _ in range(MAX)]
        pids = {await self.pid(conn) for conn in held}
        for conn in held:
            await self.give_back(fixture.pool, conn)
        return len(pids) == MAX

    @pytest.fixture
    def fixture(self, pg: Postgres, appname: str, dsn: str) -> Fixture:
        guard = lifeguard.Lifeguard(handle_sigterm=False, grace=3, open_timeout=10)
        return Fixture(pg, appname, guard, self.make(dsn, MAX))

    # -- the promises --------------------------------------------------------------------------

    def test_it_stays_what_it_was(self, fixture: Fixture) -> None:
        """Same object, an instance of its class, by the same name, with the same repr."""
        pool = fixture.pool
        cls, name, shown = type(pool), type(pool).__qualname__, repr(pool)

        async def main() -> None:
            async with self.worker(fixture):
                assert fixture.guard.adopt(pool).get() is pool
                assert isinstance(pool, cls)
                assert type(pool).__qualname__ == type(pool).__name__ == name
                assert type(pool).__module__ == cls.__module__
                assert type(pool).__doc__ == cls.__doc__

        self.run(main)
        assert repr(pool).split(" at ")[0] == shown.split(" at ")[0]

    def test_opened_and_closed_with_the_worker(self, fixture: Fixture) -> None:
        """Usable inside the worker, and no connection is left when it has ended."""

        async def main() -> None:
            async with self.worker(fixture):
                conn = await self.borrow(fixture.pool)
                assert await self.ask(conn, "SELECT 1") == 1
                await self.give_back(fixture.pool, conn)
                assert fixture.backends() > 0 if self.keeps else fixture.settled(0) == 0
            assert self.is_closed(fixture.pool)

        self.run(main)
        assert fixture.settled(0) == 0

    def test_one_worker_after_another(self, fixture: Fixture) -> None:
        """One pool serves one worker after another, each time with connections of its own."""
        pids = set()

        async def main() -> None:
            async with self.worker(fixture):
                conn = await self.borrow(fixture.pool)
                pids.add(await self.pid(conn))
                await self.give_back(fixture.pool, conn)
                assert await self.all_places_are_free(fixture)

        for _ in range(3):
            self.run(main)
            assert fixture.settled(0) == 0
        assert len(pids) == 3

    def test_already_open(self, fixture: Fixture) -> None:
        """A pool that is open when it is adopted is taken as it is, its connections included,
        also the one that is out."""

        async def main() -> None:
            await self.open(fixture.pool)
            before = await self.borrow(fixture.pool)
            pid = await self.pid(before)
            async with self.worker(fixture):
                assert await self.pid(before) == pid
                await self.give_back(fixture.pool, before)
                if self.keeps:
                    async with self.unit(fixture.guard):
                        after = await self.borrow(fixture.pool)
                        assert await self.pid(after) == pid
                        await self.give_back(fixture.pool, after)
                assert await self.all_places_are_free(fixture)

        self.run(main)
        assert fixture.settled(0) == 0

    def test_what_is_given_back_is_no_leak(self, fixture: Fixture) -> None:
        """Borrow and return in a unit: nothing is said, and the connection is used again."""

        async def main() -> None:
            async with self.worker(fixture):
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    pids = set()
                    for _ in range(MAX * 3):
                        async with self.unit(fixture.guard):
                            conn = await self.borrow(fixture.pool)
                            pids.add(await self.pid(conn))
                            await self.give_back(fixture.pool, conn)
                assert (len(pids) <= MAX) is self.keeps

        self.run(main)

    def test_a_leak_is_taken_back_and_said(
        self, fixture: Fixture, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What is still out at the unit's end is closed, its place is free, and the warning points
        at the line that borrowed it. So does the log, with keys to search for."""

        async def main() -> None:
            async with self.worker(fixture):
                with pytest.warns(lifeguard.LeakWarning, match="given back") as caught:  # noqa: PT031
                    async with self.unit(fixture.guard, "checkout"):
                        conn = await self.borrow(fixture.pool)
                        pid = await self.pid(conn)
                await self.nothing_is_out(fixture)
                (warning,) = caught
                assert warning.filename == inspect.getfile(type(self))
                assert "'checkout'" in str(warning.message)
                assert await self.all_places_are_free(fixture)
                held = [await self.borrow(fixture.pool) for _ in range(MAX)]
                assert pid not in [await self.pid(other) for other in held]  # closed, not recycled
                for other in held:
                    await self.give_back(fixture.pool, other)

        self.run(main)
        (record,) = [r for r in caplog.records if r.name == "lifeguard.leaks"]
        assert record.lifeguard_unit == "checkout"  # type: ignore[attr-defined]
        assert any("test_a_leak_is_taken_back" in line for line in record.lifeguard_stack)  # type: ignore[attr-defined]

    def test_more_leaks_than_places(self, fixture: Fixture) -> None:
        """Many times as many leaks as the pool has places: nobody ever waits, and the server never
        sees more connections than the pool may have."""

        async def main() -> None:
            async with self.worker(fixture):
                for _ in range(MAX * 4):
                    await self.leak(fixture)
                    assert fixture.backends() <= MAX
                assert await self.all_places_are_free(fixture)

        self.run(main)

    def test_an_open_transaction_is_rolled_back(self, fixture: Fixture) -> None:
        """A leak in the middle of a transaction leaves nothing idle in transaction."""

        async def main() -> None:
            async with self.worker(fixture):
                with pytest.warns(lifeguard.LeakWarning):  # noqa: PT031
                    async with self.unit(fixture.guard):
                        conn = await self.borrow(fixture.pool)
                        await self.ask(conn, "SELECT set_config('app.x', '1', true)")
                        assert fixture.idle_in_transaction() == 1
                deadline = time.monotonic() + 5
                while fixture.idle_in_transaction() and time.monotonic() < deadline:
                    await self.pause()
                assert fixture.idle_in_transaction() == 0

        self.run(main)

    def test_the_stale_holder(self, fixture: Fixture) -> None:
        """Whoever kept a connection beyond its unit finds it closed, and a late return changes
        nothing: the pool neither grows nor shrinks, however often it comes."""

        async def main() -> None:
            async with self.worker(fixture):
                conn = await self.leak(fixture)
                with pytest.raises(Exception, match=self.stale):
                    await self.ask(conn, "SELECT 1")
                await self.give_back(fixture.pool, conn)  # as a `with` block that ends late does
                for _ in range(2):  # more than once is a mistake, of which the pool may speak
                    with contextlib.suppress(ValueError):
                        await self.give_back(fixture.pool, conn)
                await self.nothing_is_out(fixture)
                assert await self.all_places_are_free(fixture)
                held = [await self.borrow(fixture.pool) for _ in range(MAX)]
                with contextlib.suppress(ValueError):
                    await self.give_back(fixture.pool, conn)
                with pytest.raises(self.full):  # not one place more than MAX
                    await self.borrow(fixture.pool)
                for other in held:
                    await self.give_back(fixture.pool, other)

        self.run(main)

    def test_the_stale_holder_and_a_borrower(self, fixture: Fixture) -> None:
        """A late return does not touch the connection of whoever has the place now."""

        async def main() -> None:
            async with self.worker(fixture):
                stale = await self.leak(fixture)
                async with self.unit(fixture.guard):
                    mine = await self.borrow(fixture.pool)
                    pid = await self.pid(mine)
                    with contextlib.suppress(ValueError):
                        await self.give_back(fixture.pool, stale)
                    assert await self.pid(mine) == pid
                    others = [await self.borrow(fixture.pool) for _ in range(MAX - 1)]
                    assert pid not in [await self.pid(other) for other in others]
                    for conn in (mine, *others):
                        await self.give_back(fixture.pool, conn)

        self.run(main)

    def test_borrowed_in_one_unit_and_returned_in_another(self, fixture: Fixture) -> None:
        """A return counts wherever it is made: no leak, and it is usable until then."""

        async def main() -> None:
            async with self.worker(fixture):
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    async with self.unit(fixture.guard, "outer"):
                        conn = await self.borrow(fixture.pool)
                        async with self.unit(fixture.guard, "inner"):
                            assert await self.ask(conn, "SELECT 1") == 1
                            await self.give_back(fixture.pool, conn)
                    assert await self.all_places_are_free(fixture)

        self.run(main)

    def test_the_end_of_an_inner_unit_leaves_the_outer_ones_connection(
        self, fixture: Fixture
    ) -> None:
        """A nested unit takes back what was borrowed in it, and nothing of its surroundings."""

        async def main() -> None:
            async with self.worker(fixture):
                async with self.unit(fixture.guard, "outer"):
                    mine = await self.borrow(fixture.pool)
                    pid = await self.pid(mine)
                    await self.leak(fixture)
                    assert await self.pid(mine) == pid
                    await self.give_back(fixture.pool, mine)

        self.run(main)

    def test_borrows_outside_of_units_are_nobodys_business(self, fixture: Fixture) -> None:
        """Without a unit the pool is what it is without lifeguard."""

        async def main() -> None:
            async with self.worker(fixture):
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    conn = await self.borrow(fixture.pool)
                    async with self.unit(fixture.guard):
                        pass
                    assert await self.ask(conn, "SELECT 1") == 1
                    await self.give_back(fixture.pool, conn)

        self.run(main)

    def test_an_exception_and_a_leak(self, fixture: Fixture) -> None:
        """The exception that made the code forget its connection comes out as it is."""
        error = ValueError("no")

        async def main() -> None:
            async with self.worker(fixture):
                with pytest.warns(lifeguard.LeakWarning):  # noqa: PT031
                    with pytest.raises(ValueError) as caught:
                        async with self.unit(fixture.guard):
                            await self.borrow(fixture.pool)
                            raise error
                assert caught.value is error and error.__context__ is None
                assert await self.all_places_are_free(fixture)

        self.run(main)

    def test_release(self, fixture: Fixture) -> None:
        """release() gives back what the unit has borrowed so far, without a word, and the unit
        can borrow again."""

        async def main() -> None:
            async with self.worker(fixture):
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    async with self.unit(fixture.guard):
                        held = [await self.borrow(fixture.pool) for _ in range(MAX)]
                        if self.is_async:
                            await fixture.guard.arelease()
                        else:
                            fixture.guard.release()
                        await self.nothing_is_out(fixture)
                        for conn in held:
                            with contextlib.suppress(ValueError):
                                await self.give_back(fixture.pool, conn)
                        assert await self.all_places_are_free(fixture)

        self.run(main)

    def test_unreachable(self, fixture: Fixture) -> None:
        """A database that is not there: the worker does not open, the error says which pool and
        where, never the password, and the pool is not left half open."""
        fixture.pool = self.make("host=127.0.0.1 port=1 user=shop password=s3cret", MAX)
        fixture.pool.name = "orders"

        async def main() -> BaseException:
            with pytest.raises(Exception) as caught:
                async with self.worker(fixture):
                    pass
            return caught.value

        error = self.run(main)
        text = "".join(traceback.format_exception(error))
        for part in ("127.0.0.1", "port=1", "'orders'", "refused"):
            assert part in text
        assert "s3cret" not in str(error) + "".join(error.__notes__)
        assert self.is_closed(fixture.pool)
        assert repr(fixture.guard._worker.state) == "closed"

    def test_fork(self, fixture: Fixture) -> None:
        """A forked child that uses the very pool gets connections of its own; the parent's go on
        as if nothing had been."""

        async def ask_twice() -> tuple[int, int]:
            conn = await self.borrow(fixture.pool)
            pid = await self.pid(conn)
            answer = int(await self.ask(conn, "SELECT 40 + 2"))
            await self.give_back(fixture.pool, conn)
            return pid, answer

        def child() -> list[Any]:
            async def main() -> tuple[int, int]:
                async with self.worker(fixture):
                    async with self.unit(fixture.guard):
                        return await ask_twice()

            return list(self.run(main))

        async def main() -> None:
            async with self.worker(fixture):
                before = await ask_twice()
                pid, answer = in_child(child)
                after = await ask_twice()
                assert answer == after[1] == 42
                assert pid != before[0]
                if self.keeps:
                    assert before == after
                assert await self.all_places_are_free(fixture)

        self.run(main)


def in_child(func: Callable[[], Any], seconds: float = 20) -> Any:
    """What *func* returns (as JSON) in a forked child, which is killed if it takes too long."""
    import json
    import select
    import signal

    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads and fork: that is the test
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            asyncio._set_running_loop(None)  # the parent's loop does not run here
            result = json.dumps({"value": func()})
            status = 0
        except BaseException:
            result = json.dumps({"error": traceback.format_exc()})
        finally:
            os.write(write, result.encode())
            os._exit(status)
    os.close(write)
    try:
        ready, _, _ = select.select([read], [], [], seconds)
        if not ready:
            os.kill(pid, signal.SIGKILL)
        data = b""
        while part := os.read(read, 65536):
            data += part
    finally:
        os.close(read)
        os.waitpid(pid, 0)
    answer = json.loads(data or '{"error": "the child hung and was killed"}')
    if "error" in answer:
        raise AssertionError(f"in the child:\n{answer['error']}")
    return answer["value"]
