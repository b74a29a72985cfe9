"""Forks: the child has its own connections and the parent keeps its, whatever was open, held or
borrowed at that moment."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from psycopg_pool import AsyncConnectionPool, ConnectionPool

import lifeguard
from lifeguard._core import ends
from lifeguard.testing import Postgres
from tests.contract.pool import in_child
from tests.support.eventlog import EventLog

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def guard() -> Iterator[lifeguard.Lifeguard]:
    guard = lifeguard.Lifeguard(handle_sigterm=False, grace=3, open_timeout=10)
    yield guard
    guard._worker.end()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the subject
        yield


def ask(pool: Any, number: int) -> tuple[int, int]:
    """A question whose answer is known, and the backend that answered."""
    with pool.connection() as conn:
        row = conn.execute("SELECT %s::int, pg_backend_pid()", [number]).fetchone()
    return row[0], row[1]


def many(pool: Any, first: int, count: int, tick: Any = None) -> tuple[int, list[int]]:
    """How many of *count* answers were right, and from which backends."""
    right, backends = 0, set()
    for number in range(first, first + count):
        answer, backend = ask(pool, number)
        right += answer == number
        backends.add(backend)
        if tick is not None:
            tick(number)
    return right, sorted(backends)


def test_children_and_parent_at_the_same_time(
    pg: Postgres, dsn: str, appname: str, guard: lifeguard.Lifeguard, eventlog: EventLog
) -> None:
    """A pool opened at import, then two forks, and all three ask at once through the very same
    object: every answer is right, and no backend serves two processes. (Bare, answers go to the
    wrong process, or hang.)"""
    pool = ConnectionPool(dsn, open=True, min_size=2, max_size=2, timeout=10)
    pool.wait()
    guard.adopt(pool)
    parents = many(pool, 0, 5)[1]

    def child(first: int) -> Any:
        eventlog.write("up")
        eventlog.wait_count("up", 3)
        return many(pool, first, 50)

    def parent() -> Any:
        eventlog.write("up")
        eventlog.wait_count("up", 3)
        return many(pool, 9000, 10)

    with ThreadPoolExecutor(3) as executor:
        running = [executor.submit(in_child, lambda n=n: child(n)) for n in (1000, 2000)]  # type: ignore[misc]
        running.append(executor.submit(parent))
        results = [future.result() for future in running]

    assert sum(right for right, _ in results) == 110
    backends = [set(pids) for _, pids in results]
    assert not (backends[0] & backends[1]) and not (backends[2] & (backends[0] | backends[1]))
    assert backends[2] <= set(parents)
    pool.close()
    assert pg.wait_count(0, prefix=appname) == 0


def _in_process(pool: Any, queue: Any) -> None:
    queue.put(many(pool, 0, 20))


def test_multiprocessing(pg: Postgres, dsn: str, appname: str, guard: lifeguard.Lifeguard) -> None:
    """``multiprocessing`` with the fork method, workers side by side: right answers, own backends,
    and nothing left when they have ended."""
    pool = ConnectionPool(dsn, open=False, min_size=1, max_size=2, timeout=10)
    context = multiprocessing.get_context("fork")
    queue: Any = context.SimpleQueue()
    with guard.worker(resources=[pool]):
        parents = many(pool, 0, 5)[1]
        children = [context.Process(target=_in_process, args=(pool, queue)) for _ in range(2)]
        for process in children:
            process.start()
        results = [queue.get() for _ in children]
        for process in children:
            process.join(20)
        assert [process.exitcode for process in children] == [0, 0]
        assert [right for right, _ in results] == [20, 20]
        assert not set(results[0][1]) & set(results[1][1])
        assert not set(parents) & {pid for _, pids in results for pid in pids}
        assert many(pool, 0, 5) == (5, parents)
        assert pg.wait_count(len(parents), prefix=appname) == len(parents)
    assert pg.wait_count(0, prefix=appname) == 0


@pytest.mark.parametrize("end", ["_exit", "sys.exit"])
def test_a_child_that_ends_leaves_the_parent_alone(
    end: str, pg: Postgres, dsn: str, appname: str
) -> None:
    """A child that never touches the pool, and ends in either way, does not close the parent's
    connections, nor run the parent's exits."""
    code = f"""
        import os, sys, lifeguard
        from psycopg_pool import AsyncConnectionPool, ConnectionPool
        pool = ConnectionPool(sys.argv[1], open=False, min_size=2)
        guard = lifeguard.Lifeguard()

        @guard.resource
        def audit():
            yield
            print("audit closes in", "parent" if os.getpid() == parent else "child", flush=True)

        parent = os.getpid()
        with guard.worker(resources=[pool]):
            with guard.unit():
                guard.callback(lambda: print("callback in", os.getpid() == parent, flush=True))
                with pool.connection() as conn:
                    before = conn.info.backend_pid
                child = os.fork()
                if child == 0:
                    {"os._exit(0)" if end == "_exit" else "sys.exit(0)"}
                os.waitpid(child, 0)
                for _ in range(4):
                    with pool.connection() as conn:
                        print(conn.execute("SELECT 1").fetchone()[0], flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), dsn],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["1"] * 4 + ["callback in True", "audit closes in parent"]
    assert pg.wait_count(0, prefix=appname) == 0


def test_backends_end_with_a_killed_parent(
    pg: Postgres, dsn: str, appname: str, eventlog: EventLog
) -> None:
    """The parent is killed with SIGKILL while a child of it lives on: the child does not hold the
    parent's sockets, so the server sees them closed. (Bare, they stay as long as the child.)"""
    code = """
        import os, sys, time, lifeguard
        from psycopg_pool import AsyncConnectionPool, ConnectionPool
        pool = ConnectionPool(sys.argv[1], open=False, min_size=3)
        lifeguard.worker(resources=[pool]).__enter__()
        pool.wait()
        child = os.fork()
        if child == 0:
            os.close(1)
            os.read(0, 1)  # until the test closes its end
            os._exit(0)
        print(child, flush=True)
        time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), dsn],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        child = int(process.stdout.readline())
        assert pg.count(prefix=appname) == 3
        process.kill()
        process.wait(10)
        try:
            assert pg.wait_count(0, prefix=appname, timeout=5) == 0
            os.kill(child, 0)  # it is alive
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_fork_while_a_thread_holds_the_pools_lock(dsn: str, guard: lifeguard.Lifeguard) -> None:
    """The lock that another thread held at the fork does not exist in the child."""
    pool = ConnectionPool(dsn, open=False, min_size=1, max_size=1, timeout=5)
    with guard.worker(resources=[pool]):
        pool.wait()
        held, over = threading.Event(), threading.Event()

        def hold() -> None:
            with pool._lock:
                held.set()
                over.wait(20)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(10)
        try:
            assert in_child(lambda: ask(pool, 7)[0]) == 7
        finally:
            over.set()
            thread.join()
        assert ask(pool, 8)[0] == 8


def test_a_fork_while_guards_lock_is_held(guard: lifeguard.Lifeguard, dsn: str) -> None:
    """A worker that is being opened by another thread at the fork does not block the child."""
    opening, over = threading.Event(), threading.Event()
    parent = os.getpid()

    @guard.resource
    def slow() -> Iterator[int]:
        if os.getpid() == parent:
            opening.set()
            over.wait(20)
        yield os.getpid()

    def hold() -> None:
        with guard.worker():
            pass

    def child() -> bool:
        with guard.worker():
            return slow.get() == os.getpid()

    thread = threading.Thread(target=hold)
    thread.start()
    opening.wait(10)
    try:
        assert in_child(child) is True
    finally:
        over.set()
        thread.join()


def test_a_fork_inside_of_a_unit(guard: lifeguard.Lifeguard, dsn: str) -> None:
    """The child is in no unit: the parent's callbacks do not run in it, registering says so, and
    what it borrows in a unit of its own is its own."""
    pool = ConnectionPool(dsn, open=False, min_size=1, max_size=2, timeout=5)
    ran: list[int] = []

    def child() -> Any:
        try:
            guard.callback(print)
        except lifeguard.LifeguardError as exc:
            error = type(exc).__name__
        with guard.unit():
            own = ask(pool, 1)[1]
        return [error, own, ran]

    with guard.worker(resources=[pool]):
        with guard.unit():
            guard.callback(ran.append, 1)
            _, mine = ask(pool, 1)
            error, own, ran_there = in_child(child)
            assert ask(pool, 2) == (2, mine)
        assert error in ("WrongProcessError", "NotOpenError")
        assert own != mine and ran_there == []
    assert ran == [1]


def test_a_fork_inside_of_a_block_that_holds_a_connection(
    pg: Postgres, dsn: str, guard: lifeguard.Lifeguard
) -> None:
    """A child that runs out of the parent's ``with pool.connection()`` neither disturbs the
    parent's transaction nor puts the parent's connection into its own pool."""
    pool = ConnectionPool(dsn, open=False, min_size=1, max_size=1, timeout=5)
    with pg.connect() as setup:
        setup.execute("DROP TABLE IF EXISTS forked")
        setup.execute("CREATE TABLE forked (x int)")

    def child() -> Any:
        try:
            block.__exit__(None, None, None)
        except Exception:
            pass  # its connection is of no use here: that is right
        return ask(pool, 5)

    with guard.worker(resources=[pool]):
        with guard.unit():
            block = pool.connection()
            conn = block.__enter__()
            mine = conn.info.backend_pid
            conn.execute("INSERT INTO forked VALUES (1)")
            answer, backend = in_child(child)
            assert (answer, backend != mine) == (5, True)
            with pg.connect() as watcher:
                assert watcher.execute("SELECT count(*) FROM forked").fetchone() == (0,)
            conn.execute("INSERT INTO forked VALUES (2)")
            block.__exit__(None, None, None)
    with pg.connect() as watcher:
        assert watcher.execute("SELECT count(*) FROM forked").fetchone() == (2,)
        watcher.execute("DROP TABLE forked")


@pytest.mark.parametrize("end", ["os._exit", "sys.exit"])
def test_a_fork_while_a_thread_is_in_a_transaction(end: str, pg: Postgres, dsn: str) -> None:
    """Another thread has a connection out, in a unit, when this one forks. The child, whose copy of
    that thread does not exist, ends, destructors and all; the transaction goes on and commits."""
    code = f"""
        import gc, os, sys, threading, lifeguard
        from concurrent.futures import ThreadPoolExecutor
        from psycopg_pool import AsyncConnectionPool, ConnectionPool
        pool = ConnectionPool(sys.argv[1], open=False, min_size=1, max_size=2, timeout=5)
        inside, over = threading.Event(), threading.Event()

        def transaction():
            with lifeguard.unit(), pool.connection() as conn:
                conn.execute("CREATE TEMP TABLE forked (x int)")
                inside.set()
                over.wait(20)
                conn.execute("INSERT INTO forked VALUES (2)")
                return conn.execute("SELECT count(*) FROM forked").fetchone()[0]

        with lifeguard.worker(resources=[pool]), ThreadPoolExecutor(1) as executor:
            running = executor.submit(transaction)
            inside.wait(10)
            child = os.fork()
            if child == 0:
                del running, executor
                gc.collect()
                {end}(0)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            over.set()
            print(status, running.result())
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), dsn],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "0 1\n")


def test_a_generator_resource_in_the_child(dsn: str, guard: lifeguard.Lifeguard) -> None:
    """What a resource yielded before the fork is the parent's: ``get()`` says so in the child until
    the child has opened its own; the old pool object, if somebody kept it, works on connections of
    the child's."""

    @guard.resource
    def db() -> Iterator[ConnectionPool]:
        with ConnectionPool(dsn, open=False, min_size=1, max_size=1, timeout=5) as pool:
            yield pool

    def child() -> Any:
        try:
            db.get()
        except lifeguard.WrongProcessError as exc:
            said = str(exc)
        old = ask(kept, 1)
        with guard.worker():
            own = ask(db.get(), 2)
            another = db.get() is not kept
        return [said, old, own, another]

    with guard.worker():
        kept = db.get()
        _, mine = ask(kept, 0)
        said, old, own, another = in_child(child)
        assert "'db'" in said and str(os.getpid()) in said
        assert old[0] == 1 and own[0] == 2 and another
        assert mine not in (old[1], own[1])
        assert ask(kept, 3) == (3, mine)


def test_a_fork_of_a_fork(dsn: str, guard: lifeguard.Lifeguard) -> None:
    """Grandchildren too have connections of their own."""
    pool = ConnectionPool(dsn, open=False, min_size=1, max_size=1, timeout=5)

    def child() -> Any:
        mine = ask(pool, 1)
        theirs = in_child(lambda: ask(pool, 2))
        again = ask(pool, 3)
        return [mine, theirs, again]

    with guard.worker(resources=[pool]):
        _, first = ask(pool, 0)
        (one, second), (two, third), (three, again) = in_child(child)
        assert (one, two, three) == (1, 2, 3)
        assert len({first, second, third}) == 3 and again == second
        assert ask(pool, 4) == (4, first)


def test_a_fork_below_a_running_loop(dsn: str, guard: lifeguard.Lifeguard) -> None:
    """A child forked by a process whose event loop runs: sync code in it uses the pool rightly."""

    async def main() -> None:
        pool = ConnectionPool(dsn, open=False, min_size=1, max_size=1, timeout=5)
        async with guard.worker(resources=[pool]):
            _, mine = ask(pool, 1)
            answer, theirs = in_child(lambda: ask(pool, 2))
            assert answer == 2 and theirs != mine
            assert ask(pool, 3) == (3, mine)

    asyncio.run(main())


class Leaks(lifeguard.Observer):
    def __init__(self) -> None:
        self.stacks: list[list[str]] = []

    def leaked(self, borrow: Any) -> None:
        self.stacks.append(borrow.stack())


@pytest.mark.filterwarnings("ignore::lifeguard.LeakWarning")
@pytest.mark.parametrize("how", ["getconn", "connection", "async"])
def test_a_leak_of_the_first_borrow_in_a_child_names_its_line(
    how: str, pg: Postgres, dsn: str, appname: str
) -> None:
    """The pool opens anew in that call. Who made it is in the report all the same."""
    observer = Leaks()
    guard = lifeguard.Lifeguard(handle_sigterm=False, observers=[observer])
    held: list[Any] = []

    def forgets(pool: Any) -> None:
        if how == "getconn":
            pool.getconn()
        else:
            held.append(pool.connection())  # or it would be left with the last reference
            held[0].__enter__()

    async def forgets_async(pool: Any) -> None:
        async with guard.unit():
            await pool.getconn()

    def child(pool: Any) -> list[str]:
        with guard.unit():
            forgets(pool)
        return observer.stacks[0]

    def async_child(pool: Any) -> list[str]:
        async def main() -> None:
            async with guard.worker():
                await forgets_async(pool)
                await pool.close()

        asyncio.run(main())
        return observer.stacks[0]

    async def open_and_fork() -> list[str]:
        async with AsyncConnectionPool(dsn, open=False, min_size=1, max_size=2) as pool:
            guard.adopt(pool)
            with ThreadPoolExecutor(1) as executor:  # where no loop runs
                return executor.submit(in_child, lambda: async_child(pool)).result(20)  # type: ignore[no-any-return]

    if how == "async":
        stack = asyncio.run(open_and_fork())
    else:
        with ConnectionPool(dsn, open=True, min_size=1, max_size=2) as pool:
            guard.adopt(pool)
            stack = in_child(lambda: child(pool))
    assert any("forgets" in line for line in stack), stack
    assert pg.wait_count(0, prefix=appname) == 0


# -- the end of the child -------------------------------------------------------------------------


def forked(cls: Any, guard: lifeguard.Lifeguard, child: Callable[[], Any]) -> Any:
    """What *child* returns in a process that was forked while this one's worker was open."""
    if cls is ConnectionPool:
        with guard.worker():
            return in_child(child)

    async def main() -> Any:
        async with guard.worker():
            with ThreadPoolExecutor(1) as executor:  # where no loop runs
                return await asyncio.wrap_future(executor.submit(in_child, child))

    return asyncio.run(main())


@pytest.mark.parametrize("cls", [ConnectionPool, AsyncConnectionPool])
def test_a_pool_that_a_child_opens_anew_is_closed_at_its_end(
    cls: Any, dsn: str, guard: lifeguard.Lifeguard
) -> None:
    """Also where the child has no worker: what it has connected is closed when it ends."""
    pool = cls(dsn, open=False, min_size=1, max_size=1)
    guard.define(guard.adopt(pool))

    def child() -> list[bool]:
        made = []
        if cls is ConnectionPool:
            with pool.connection() as conn:
                made.append(conn)
        else:

            async def main() -> None:
                async with pool.connection() as conn:
                    made.append(conn)

            loop = asyncio.new_event_loop()
            loop.run_until_complete(main())  # and no more: nobody closes it
        before = made[0].closed
        ends.run(os.getpid())
        return [before, made[0].closed]

    assert forked(cls, guard, child) == [False, True]


@pytest.mark.parametrize("cls", [ConnectionPool, AsyncConnectionPool])
def test_a_pool_that_a_child_opens_anew_is_closed_after_what_uses_it(
    cls: Any, dsn: str, guard: lifeguard.Lifeguard
) -> None:
    """A resource that asks once more at its own end, when nothing but the child's end closes it."""
    pool = cls(dsn, open=False, min_size=1, max_size=1)
    guard.define(guard.adopt(pool))
    said: list[int] = []

    if cls is ConnectionPool:

        @guard.resource
        def last_words() -> Iterator[None]:
            yield
            said.append(ask(pool, 9)[0])
    else:

        @guard.resource
        async def last_words() -> AsyncIterator[None]:
            yield
            async with pool.connection() as conn:
                said.append((await (await conn.execute("SELECT 9")).fetchone())[0])

    def child() -> list[int]:
        if cls is ConnectionPool:
            guard.acquire(hold=False)
        else:
            asyncio.new_event_loop().run_until_complete(guard.aacquire(hold=False))
        ends.run(os.getpid())
        return said

    assert forked(cls, guard, child) == [9]
