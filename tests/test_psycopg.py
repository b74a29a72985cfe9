"""What is special about psycopg_pool: closing, loops, threads, private names. See tests/contract
for what holds for every pool, and tests/faults for forks, dead sockets and cancellations."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg_pool
import pytest
from psycopg_pool import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    ConnectionPool,
    NullConnectionPool,
)

import lifeguard
from lifeguard.testing import Postgres
from tests.endings.server import http_only, scope

ROOT = Path(__file__).parent.parent


@pytest.fixture
def guard() -> Iterator[lifeguard.Lifeguard]:
    guard = lifeguard.Lifeguard(handle_sigterm=False, grace=3, open_timeout=10)
    yield guard
    guard._worker.end()


@pytest.fixture
def silent() -> Iterator[None]:
    """Nothing is warned about."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def script(code: str, *arguments: str, seconds: float = 30) -> tuple[list[str], float]:
    """Run *code* in a fresh interpreter: the lines it printed, and how long it took."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines(), time.monotonic() - began


# -- the version that is installed ----------------------------------------------------------------

POOL = "_pool _waiting _workers _sched_runner _pool_full_event _nconns _nconns_min _min_size"
POOL += " _growing _lock _opened _closed _drained_at _tasks _sched"


@pytest.mark.parametrize(
    "cls", [ConnectionPool, NullConnectionPool, AsyncConnectionPool, AsyncNullConnectionPool]
)
def test_private_names_that_are_used(cls: Any, dsn: str) -> None:
    """The installed psycopg_pool has every private name that lifeguard.psycopg uses. When this
    fails after an update, look there: pools still open and close, but see the module's docstring
    for what is lost."""

    async def names() -> set[str]:
        pool = cls(dsn, open=False)
        opened = pool.open()
        if inspect.isawaitable(opened):
            await opened
        found = {name for name in POOL.split() if hasattr(pool, name)}
        closed = pool.close()
        if inspect.isawaitable(closed):
            await closed
        return found

    assert set(POOL.split()) - asyncio.run(names()) == set()
    for method in ("getconn", "putconn", "close", "_connect"):
        assert callable(getattr(cls, method))
    assert inspect.iscoroutinefunction(cls.getconn) is issubclass(cls, AsyncConnectionPool)
    assert psycopg_pool.__version__ >= "3.2.2"


# -- closing --------------------------------------------------------------------------------------


def test_a_close_that_is_cancelled_leaves_nothing(
    pg: Postgres, dsn: str, appname: str, guard: lifeguard.Lifeguard
) -> None:
    """``asyncio.run`` is ended by Ctrl-C or a timeout while the pool closes: bare, connections stay
    (psycopg_pool marks itself closed first); guarded, none does."""

    async def main() -> None:
        pool = AsyncConnectionPool(dsn, open=False, min_size=4, max_size=4)
        async with guard.worker(resources=[pool]):
            await pool.wait()
            assert pg.count(prefix=appname) == 4
            task = asyncio.ensure_future(pool.close())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert pool.closed
            assert pg.wait_count(0, prefix=appname) == 0

    asyncio.run(main())


def test_a_worker_that_is_closed_by_a_cancelled_task(
    pg: Postgres, dsn: str, appname: str, guard: lifeguard.Lifeguard
) -> None:
    """Whoever closes the worker is cancelled meanwhile, twice: it is closed all the same."""

    async def main() -> None:
        pool = AsyncConnectionPool(dsn, open=False, min_size=4, max_size=4)
        inside = asyncio.Event()

        async def serve() -> None:
            async with guard.worker(resources=[pool]):
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.ensure_future(serve())
        await inside.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() and pool.closed
        assert pg.wait_count(0, prefix=appname) == 0

    asyncio.run(main())


@pytest.mark.parametrize("declared", ["adopted", "generator", "lifespan"])
def test_a_loop_that_ends_with_the_pool_open(
    declared: str, pg: Postgres, dsn: str, appname: str, guard: lifeguard.Lifeguard
) -> None:
    """``asyncio.run`` ends without a shutdown and cancels the pool's own tasks with all others:
    however the pool was given to lifeguard, no connection is left."""
    pools: list[AsyncConnectionPool] = []

    async def main() -> None:
        if declared == "adopted":
            pools.append(AsyncConnectionPool(dsn, open=False, min_size=2))
            await guard.worker(resources=pools).__aenter__()
        elif declared == "generator":

            @guard.resource
            async def db() -> Any:
                async with AsyncConnectionPool(dsn, open=False, min_size=2) as pool:
                    pools.append(pool)
                    yield pool

            await guard.worker().__aenter__()
        else:

            @guard.lifespan
            async def lifespan(app: Any) -> Any:
                async with AsyncConnectionPool(dsn, open=False, min_size=2) as pool:
                    pools.append(pool)
                    yield {"pool": pool}

            manager = lifespan(None)
            await manager.__aenter__()
            kept.append(manager)
        await pools[0].wait()
        assert pg.count(prefix=appname) == 2

    kept: list[Any] = []
    asyncio.run(main())

    assert pools[0].closed
    assert pg.wait_count(0, prefix=appname) == 0


def test_a_loop_that_is_closed_without_a_word(dsn: str) -> None:
    """A loop that is stopped and closed with everything in it: the next worker begins with the
    same pool on its own loop, and the old connections are gone."""
    code = """
        import asyncio, logging, sys, psycopg, lifeguard
        from psycopg_pool import AsyncConnectionPool
        logging.disable()
        sys.unraisablehook = lambda *_: None  # tasks that were pending: that is what this is about
        guard = lifeguard.Lifeguard()
        pool = None

        async def begin():
            global pool
            pool = pool or AsyncConnectionPool(sys.argv[1], open=False, min_size=2)
            await guard.worker(resources=[pool]).__aenter__()
            async with pool.connection() as conn:
                return conn.info.backend_pid

        def alive(pid):
            with psycopg.connect(sys.argv[1]) as conn:
                query = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
                return conn.execute(query, [pid]).fetchone()[0]

        first = asyncio.new_event_loop()
        old = first.run_until_complete(begin())
        first.close()
        second = asyncio.new_event_loop()
        new = second.run_until_complete(begin())
        print(old != new, alive(new), alive(old))
        second.run_until_complete(guard._worker.aclose())
        second.close()
        print(alive(new))
    """
    assert script(code, dsn)[0] == ["True 1 0", "0"]


def test_what_a_unit_holds_when_its_loop_is_closed(dsn: str) -> None:
    """The unit can never end. It is named, and PostgreSQL hears a goodbye from its connection."""
    code = """
        import asyncio, logging, sys, lifeguard
        from psycopg_pool import AsyncConnectionPool
        logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.WARNING)
        logging.getLogger("asyncio").disabled = True  # pending tasks: that is what this is about
        sys.unraisablehook = lambda *_: None
        guard = lifeguard.Lifeguard()
        held = []

        async def hold(pool, inside):
            async with guard.unit("holds"):
                async with pool.connection() as conn:
                    await conn.execute("SELECT 1")
                    held.append(conn)
                    inside.set()
                    await asyncio.Event().wait()

        async def begin():
            inside = asyncio.Event()
            pool = AsyncConnectionPool(sys.argv[1], open=False, min_size=1)
            await guard.worker(resources=[pool]).__aenter__()
            held.append(asyncio.create_task(hold(pool, inside)))
            await inside.wait()

        loop = asyncio.new_event_loop()
        loop.run_until_complete(begin())
        loop.close()
        guard._worker.end()
        print(held[1].closed, held[1].pgconn.status == 1)  # BAD: finished
    """
    lines = script(code, dsn)[0]
    assert "unit 'holds' is still running" in lines[0]
    assert "its event loop is gone" in lines[0]
    assert lines[-1] == "True True"


EXIT = """
    import sys
    from psycopg_pool import ConnectionPool
    pool = ConnectionPool(sys.argv[1], open=sys.argv[2] != "guarded", min_size=4)
    if sys.argv[2] != "bare":
        import lifeguard
    if sys.argv[2] == "guarded":
        lifeguard.worker(resources=[pool]).__enter__()
    elif sys.argv[2] == "adopted":
        lifeguard.wrap(lambda environ, start_response: [], resources=[pool])
    pool.wait()
    print("ready", flush=True)
"""


@pytest.mark.parametrize("how", ["guarded", "adopted"])
def test_exit_of_a_process_that_never_closes(
    how: str, pg: Postgres, dsn: str, appname: str
) -> None:
    """A sync pool that nobody closes delays the exit of Python 3.13 by 20 s (psycopg#954). Given to
    lifeguard, it does not: opened by the worker, or open already and merely passed to wrap()."""
    lines, seconds = script(EXIT, dsn, how)

    assert lines == ["ready"]
    assert seconds < 15
    assert pg.wait_count(0, prefix=appname) == 0


@pytest.mark.skipif(sys.version_info < (3, 13), reason="the delay came with Python 3.13")
def test_exit_of_a_bare_process_is_slow(dsn: str) -> None:
    """The control of the test above: without lifeguard it takes its 20 s."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(EXIT), dsn, "bare"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    with process, process.stdout:
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(6)
        process.kill()
    assert time.monotonic() - began >= 6


def test_connections_made_by_a_resource_of_ones_own(
    pg: Postgres, dsn: str, appname: str, guard: lifeguard.Lifeguard
) -> None:
    """A pool that a generator resource yields is guarded like one that was passed: same object,
    leaks are taken back."""

    @guard.resource
    def db() -> Iterator[ConnectionPool]:
        with ConnectionPool(dsn, open=False, min_size=1, max_size=1, timeout=2) as pool:
            yield pool

    with guard.worker():
        for _ in range(3):
            with pytest.warns(lifeguard.LeakWarning):
                with guard.unit():
                    db.get().getconn()
    assert pg.wait_count(0, prefix=appname) == 0


# -- who holds a connection -----------------------------------------------------------------------


def borrow_in_a_function(pool: Any) -> Any:
    return pool.getconn()  # the line that the report has to show


def test_a_leak_names_its_callers(
    dsn: str, guard: lifeguard.Lifeguard, caplog: pytest.LogCaptureFixture
) -> None:
    """The report shows the borrowing line and its caller; the observer is told, with the stack."""
    seen: list[Any] = []

    class Watch(lifeguard.Observer):
        def leaked(self, borrow: Any) -> None:
            seen.append(borrow.stack())

    guard.observers = (Watch(),)
    pool = ConnectionPool(dsn, open=False, name="orders")
    with guard.worker(resources=[pool]):
        with pytest.warns(lifeguard.LeakWarning) as caught:
            with guard.unit("checkout"):
                borrow_in_a_function(pool)

    code = borrow_in_a_function.__code__
    line = f"{__file__}:{code.co_firstlineno + 1} in borrow_in_a_function"
    message = str(caught[0].message)
    assert (caught[0].filename, caught[0].lineno) == (__file__, code.co_firstlineno + 1)
    assert "'orders'" in message and "'checkout'" in message and line in message
    assert seen[0][-1] == line
    assert seen[0][-2].endswith("in test_a_leak_names_its_callers")


def test_a_block_that_never_ends_names_the_block(dsn: str, guard: lifeguard.Lifeguard) -> None:
    """``with pool.connection()`` in a generator that is never finished: the line is that of the
    block, not one inside of psycopg_pool."""
    pool = ConnectionPool(dsn, open=False, min_size=1, max_size=1, timeout=2)

    def rows() -> Iterator[Any]:
        with pool.connection() as conn:
            yield from conn.execute("SELECT 1")

    kept = []
    with guard.worker(resources=[pool]):
        with pytest.warns(lifeguard.LeakWarning) as caught:  # noqa: PT031
            with guard.unit():
                kept.append(rows())
                next(kept[0])
        assert caught[0].filename == __file__
        assert caught[0].lineno == rows.__code__.co_firstlineno + 1
        with pool.connection() as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)
    with contextlib.suppress(Exception):
        kept[0].close()


@pytest.mark.usefixtures("silent")
def test_borrowed_in_one_thread_and_returned_in_another(
    dsn: str, guard: lifeguard.Lifeguard
) -> None:
    """Frameworks run the halves of a dependency in different to_thread jobs of one request: that
    is no leak, and the connection is usable in between."""
    pool = ConnectionPool(dsn, open=False, min_size=1, max_size=1, timeout=2)
    answers: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        conn = await asyncio.to_thread(pool.getconn)
        await asyncio.to_thread(lambda: answers.append(conn.execute("SELECT 1").fetchone()[0]))
        await asyncio.to_thread(pool.putconn, conn)

    async def main() -> None:
        served = guard.wrap(http_only(app), resources=[pool])
        for _ in range(3):
            await served(scope(), None, None)

    asyncio.run(main())
    assert answers == [1, 1, 1]


def test_borrowed_in_a_thread_of_a_request_and_forgotten(
    dsn: str, guard: lifeguard.Lifeguard
) -> None:
    """What a to_thread job of a request borrowed and nobody returned is taken back at the end of
    the request, not before."""
    pool = ConnectionPool(dsn, open=False, min_size=1, max_size=1, timeout=2)
    answers: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        conn = await asyncio.to_thread(pool.getconn)
        answers.append(await asyncio.to_thread(lambda: conn.execute("SELECT 1").fetchone()[0]))

    async def main() -> None:
        served = guard.wrap(http_only(app), resources=[pool])
        for _ in range(3):
            with pytest.warns(lifeguard.LeakWarning):
                await served(scope(), None, None)

    asyncio.run(main())
    assert answers == [1, 1, 1]


@pytest.mark.usefixtures("silent")
def test_a_task_that_outlives_its_request_keeps_its_connection(
    dsn: str, guard: lifeguard.Lifeguard
) -> None:
    """A background task started in a request goes on after it: what it holds at the request's end,
    and what it borrows later, is its own, and nobody warns."""
    answers: list[Any] = []
    tasks: list[asyncio.Task[None]] = []

    async def main() -> None:
        pool = AsyncConnectionPool(dsn, open=False, min_size=1, max_size=2, timeout=2)
        holds, go_on = asyncio.Event(), asyncio.Event()

        async def background() -> None:
            async with pool.connection() as conn:
                holds.set()
                await go_on.wait()
                answers.append(await (await conn.execute("SELECT 1")).fetchone())
            async with pool.connection() as conn:
                answers.append(await (await conn.execute("SELECT 2")).fetchone())

        async def app(scope: Any, receive: Any, send: Any) -> None:
            tasks.append(asyncio.ensure_future(background()))
            await holds.wait()

        served = guard.wrap(http_only(app), resources=[pool])
        await served(scope(), None, None)
        go_on.set()
        await tasks[0]

    asyncio.run(main())
    assert answers == [(1,), (2,)]


def test_what_an_outliving_task_forgets_is_taken_back_at_its_own_end(
    dsn: str, guard: lifeguard.Lifeguard
) -> None:
    """The background task has a unit of its own, and that has an end, too."""
    tasks: list[asyncio.Task[Any]] = []

    async def main() -> None:
        pool = AsyncConnectionPool(dsn, open=False, min_size=1, max_size=1, timeout=2)
        go_on = asyncio.Event()

        async def background() -> None:
            await go_on.wait()
            await pool.getconn()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            tasks.append(asyncio.ensure_future(background()))

        served = guard.wrap(http_only(app), resources=[pool])
        await served(scope(), None, None)
        with pytest.warns(lifeguard.LeakWarning, match="outlived"):  # noqa: PT031
            go_on.set()
            await tasks[0]
            async with pool.connection() as conn:  # waits for the place that is given back
                assert await (await conn.execute("SELECT 1")).fetchone() == (1,)

    asyncio.run(main())


def test_leaks_of_many_threads(
    pg: Postgres, dsn: str, appname: str, guard: lifeguard.Lifeguard
) -> None:
    """Eight threads that forget every third connection: each leak is said once, the server never
    has more than the pool's maximum, and afterwards all places are there."""
    pool = ConnectionPool(dsn, open=False, min_size=2, max_size=4, timeout=10)
    most = 0
    leaks: list[Any] = []
    lock = threading.Lock()

    class Watch(lifeguard.Observer):
        def leaked(self, borrow: Any) -> None:
            leaks.append(borrow)

    guard.observers = (Watch(),)

    def job(number: int) -> int:
        nonlocal most
        conn = pool.getconn()
        answer: int = conn.execute("SELECT %s::int", [number]).fetchone()[0]  # type: ignore[index]
        with lock:
            most = max(most, pool.get_stats()["pool_size"])
        if number % 3:
            pool.putconn(conn)
        return answer

    with guard.worker(resources=[pool]), warnings.catch_warnings():
        warnings.simplefilter("ignore", lifeguard.LeakWarning)
        with lifeguard.ThreadPoolExecutor(8, guard=guard) as executor:
            assert list(executor.map(job, range(120))) == list(range(120))
        assert len(leaks) == 40 and most <= 4
        held = [pool.getconn(timeout=5) for _ in range(4)]
        for conn in held:
            pool.putconn(conn)
    assert pg.wait_count(0, prefix=appname) == 0


def test_release_in_the_wrong_kind_of_unit(dsn: str, guard: lifeguard.Lifeguard) -> None:
    """release() with an async pool's connection says to await arelease(); outside of a unit both
    say so."""

    async def main() -> None:
        pool = AsyncConnectionPool(dsn, open=False, min_size=1)
        async with guard.worker(resources=[pool]):
            async with guard.unit():
                conn = await pool.getconn()
                with pytest.raises(TypeError, match="arelease"):
                    guard.release()
                await guard.arelease()
                assert conn.closed
            with pytest.raises(lifeguard.NotOpenError):
                await guard.arelease()
        with pytest.raises(lifeguard.NotOpenError):
            guard.release()

    asyncio.run(main())


@pytest.mark.usefixtures("silent")
def test_release_before_a_long_stream(dsn: str, guard: lifeguard.Lifeguard) -> None:
    """With a pool of one, a stream that has released lets another request through."""
    log: list[str] = []

    async def main() -> None:
        pool = AsyncConnectionPool(dsn, open=False, min_size=1, max_size=1, timeout=2)
        streaming, over = asyncio.Event(), asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            conn = await pool.getconn()
            await conn.execute("SELECT 1")
            if scope["path"] == "/stream":
                await guard.arelease()
                streaming.set()
                await over.wait()
            else:
                await pool.putconn(conn)
            log.append(scope["path"])

        served = guard.wrap(http_only(app), resources=[pool])
        stream = asyncio.ensure_future(served(scope(path="/stream"), None, None))
        await streaming.wait()
        await served(scope(path="/other"), None, None)
        over.set()
        await stream

    asyncio.run(main())
    assert log == ["/other", "/stream"]


# -- how they are opened --------------------------------------------------------------------------


def test_opened_once_for_two_apps(
    pg: Postgres, dsn: str, appname: str, guard: lifeguard.Lifeguard
) -> None:
    """One pool passed to two wraps is one resource."""
    pool = ConnectionPool(dsn, open=False, min_size=2)

    def app(environ: Any, start_response: Any) -> Any:
        with pool.connection() as conn:
            return [str(conn.info.backend_pid).encode()]

    apps = [guard.wrap(app, resources=[pool]) for _ in range(2)]
    for served in apps:
        served({"PATH_INFO": "/"}, lambda *_: None)
    assert guard.adopt(pool) is guard.adopt(pool)
    assert len(guard._worker.values) == 1
    assert pg.count(prefix=appname) == 2


def test_first_requests_of_sixteen_threads(
    pg: Postgres, dsn: str, appname: str, guard: lifeguard.Lifeguard
) -> None:
    """WSGI threads that all come first: the pool opens once, everybody gets an answer."""
    pool = ConnectionPool(dsn, open=False, min_size=1, max_size=3, timeout=10)
    together = threading.Barrier(16)

    def app(environ: Any, start_response: Any) -> Any:
        with pool.connection() as conn:
            return [str(conn.execute("SELECT 42").fetchone()[0]).encode()]  # type: ignore[index]

    served = guard.wrap(app, resources=[pool])

    def request() -> Any:
        together.wait(10)
        return served({"PATH_INFO": "/"}, lambda *_: None)

    with ThreadPoolExecutor(16) as executor:
        answers = [executor.submit(request) for _ in range(16)]
        assert [answer.result() for answer in answers] == [[b"42"]] * 16
    assert pg.count(prefix=appname) <= 3


def test_sync_worker_and_async_pool(dsn: str, guard: lifeguard.Lifeguard) -> None:
    """An async pool under a sync worker: a TypeError that names it and says what to do, and no
    coroutine that was never awaited."""
    guard_pool: list[Any] = []

    async def make() -> None:
        guard_pool.append(AsyncConnectionPool(dsn, open=False, name="orders"))

    asyncio.run(make())
    with pytest.raises(TypeError, match=r"'orders'.*async with lifeguard\.worker"):
        with guard.worker(resources=guard_pool):
            pass


def test_a_pool_with_settings_made_by_functions(
    pg: Postgres, dsn: str, appname: str, guard: lifeguard.Lifeguard
) -> None:
    """conninfo and kwargs may be functions in newer psycopg_pools, async ones for async pools."""

    async def address() -> str:
        return dsn

    async def main() -> None:
        try:
            pool = AsyncConnectionPool(address, open=False, min_size=1)  # type: ignore[arg-type]
        except TypeError:
            return
        async with guard.worker(resources=[pool]):
            async with pool.connection() as conn:
                assert await (await conn.execute("SELECT 1")).fetchone() == (1,)

    asyncio.run(main())
    assert pg.wait_count(0, prefix=appname) == 0


def test_a_pool_that_a_resource_yields_is_open_to_the_end_of_the_worker(dsn: str) -> None:
    """A program that just ends: the pool closes after what was opened with it, and may use it."""
    lines, _ = script(
        """
        import sys
        import lifeguard
        from psycopg_pool import ConnectionPool

        @lifeguard.resource
        def db():
            with ConnectionPool(sys.argv[1], min_size=1, open=True) as pool:
                yield pool

        @lifeguard.resource
        def last_words():
            yield
            with db.get().connection() as conn:
                print(conn.execute("SELECT 9").fetchone()[0])

        with lifeguard.unit():
            print("unit")
        """,
        dsn,
    )
    assert lines == ["unit", "9"]
