"""What people do around forks that nobody should: each has an outcome, and a message where there is
something to say."""

from __future__ import annotations

import asyncio
import os
import signal
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from psycopg_pool import ConnectionPool

import lifeguard
from lifeguard.testing import Postgres
from tests.core.helpers import in_fork
from tests.endings.server import scope as asgi_scope
from tests.forks.asking import ask
from tests.forks.conftest import Start


@pytest.fixture
def guard() -> Iterator[lifeguard.Lifeguard]:
    guard = lifeguard.Lifeguard(handle_sigterm=False, grace=3, open_timeout=10)
    yield guard
    guard._worker.end()


# -- wrapping before the fork and after it --------------------------------------------------------


def wsgi_app(pool: Any) -> Callable[..., list[bytes]]:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [str(ask(pool, 7)[1]).encode()]

    return app


def request(app: Any) -> int:
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "QUERY_STRING": ""}
    body = app(environ, lambda status, headers, exc_info=None: None)
    return int(b"".join(body))


@pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
def test_wrapped_before_the_fork(used: bool, guard: lifeguard.Lifeguard, dsn: str) -> None:
    """As preloading does. Whether the parent served a request or not, each child serves its own,
    and closes what it opened."""
    pool = ConnectionPool(dsn, open=False, min_size=1, max_size=1, timeout=10)
    app = guard.wrap(wsgi_app(pool), resources=[pool])
    mine = request(app) if used else 0

    def child() -> list[int]:
        backends = [request(app), request(app)]
        guard._worker.close()
        return [*backends, int(pool.closed)]

    first = in_fork(child)
    second = in_fork(child)
    for backend, again, closed in (first, second):
        assert backend == again
        assert closed == 1
    assert len({first[0], second[0], mine}) == 3
    assert request(app) == mine or not used
    guard._worker.close()


def test_wrapped_after_the_fork(guard: lifeguard.Lifeguard, dsn: str) -> None:
    """The parent has a pool open that lifeguard knows; the app is made and wrapped in the child,
    around the same pool."""
    pool = ConnectionPool(dsn, open=False, min_size=1, max_size=1, timeout=10)

    def child() -> list[int]:
        app = guard.wrap(wsgi_app(pool), resources=[pool])
        backends = [request(app), request(app)]
        guard._worker.close()
        return [*backends, int(pool.closed)]

    with guard.worker(resources=[pool]):
        mine = ask(pool, 1)[1]
        backend, again, closed = in_fork(child)
        assert backend == again != mine
        assert closed == 1
        assert ask(pool, 2) == (2, mine)


def test_imported_after_the_fork(start: Start, pg: Postgres, appname: str) -> None:
    """lifeguard comes into the process in the child only, where a pool of the parent's is open. It
    cannot know that, nor help. What it can do is no more harm: it is the parent's pool, closed by
    the parent."""
    program = start("-c", textwrap.dedent(IMPORTED_LATE))
    assert program.wait() == 0, program.said()
    assert program.log.read("child")[0]["own"] is True
    assert program.log.read("parent")[0]["asked"] == 2
    assert pg.wait_count(0, prefix=appname) == 0


IMPORTED_LATE = """
    import os
    from psycopg_pool import ConnectionPool
    from tests.support.eventlog import EventLog

    log = EventLog.from_env()
    with ConnectionPool(os.environ["APP_DSN"], open=True, min_size=1, max_size=1) as pool:
        with pool.connection() as conn:
            mine = conn.info.backend_pid
        child = os.fork()
        if child == 0:
            import lifeguard

            with ConnectionPool(os.environ["APP_DSN"], open=False, min_size=1) as own:
                with lifeguard.worker(resources=[own]), own.connection() as conn:
                    log.write("child", own=conn.info.backend_pid != mine)
            os._exit(0)
        os.waitpid(child, 0)
        with pool.connection() as conn:
            log.write("parent", asked=conn.execute("SELECT 2").fetchone()[0])
"""


# -- two apps in one process ----------------------------------------------------------------------


class Site:
    """An ASGI app that is started, asked and ended by hand, as a server does it."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def start(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self.task = asyncio.create_task(self.app(scope, self.inbox.get, self.outbox.put))
        await self.inbox.put({"type": "lifespan.startup"})
        assert (await self.outbox.get())["type"] == "lifespan.startup.complete"

    async def end(self) -> None:
        await self.inbox.put({"type": "lifespan.shutdown"})
        assert (await self.outbox.get())["type"] == "lifespan.shutdown.complete"
        await self.task

    async def get(self) -> int:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.app(asgi_scope(), receive, send)
        return int(sent[0]["status"])


def asgi_app(pool: Any) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        right = (await asyncio.to_thread(ask, pool, 7))[0] == 7
        await send({"type": "http.response.start", "status": 200 if right else 500, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return app


@pytest.mark.parametrize("first_out", [0, 1])
def test_two_asgi_apps_on_one_guard(
    first_out: int, guard: lifeguard.Lifeguard, dsn: str, pg: Postgres, appname: str
) -> None:
    """They share one worker, which the last one closes: the other goes on with its pool open, and
    with the pool of the one that has ended."""
    pools = [ConnectionPool(dsn, open=False, min_size=1, max_size=1, timeout=60) for _ in range(2)]

    async def main() -> None:
        sites = [Site(guard.wrap(asgi_app(pool), resources=[pool])) for pool in pools]
        for site in sites:
            await site.start()
        assert [await site.get() for site in sites] == [200, 200]
        await sites[first_out].end()
        assert [pool.closed for pool in pools] == [False, False]
        assert await sites[1 - first_out].get() == 200
        await sites[1 - first_out].end()
        assert [pool.closed for pool in pools] == [True, True]

    asyncio.run(main())
    assert pg.wait_count(0, prefix=appname) == 0


def test_an_asgi_and_a_wsgi_app_on_one_guard(
    guard: lifeguard.Lifeguard, dsn: str, pg: Postgres, appname: str
) -> None:
    """The ASGI app's lifespan ends first, and with it the worker, for a WSGI app has no end to wait
    for. The next request of the WSGI app opens it again; nothing is left at the end."""
    pools = [ConnectionPool(dsn, open=False, min_size=1, max_size=1, timeout=60) for _ in range(2)]
    plain = guard.wrap(wsgi_app(pools[1]), resources=[pools[1]])

    async def main() -> None:
        site = Site(guard.wrap(asgi_app(pools[0]), resources=[pools[0]]))
        await site.start()
        assert await site.get() == 200
        assert await asyncio.to_thread(request, plain) > 0
        await site.end()

    asyncio.run(main())
    assert [pool.closed for pool in pools] == [True, True]
    assert request(plain) > 0
    guard._worker.close()
    assert pg.wait_count(0, prefix=appname) == 0


# -- ends that leave no time ----------------------------------------------------------------------

ABRUPT = """
    import os, sys, time
    import psycopg
    from psycopg_pool import ConnectionPool
    import lifeguard
    from tests.support.eventlog import EventLog

    log = EventLog.from_env()
    kind, who = sys.argv[1:]
    pool = ConnectionPool(os.environ["APP_DSN"], open=False, min_size=2, max_size=2)

    @lifeguard.resource
    def connection():
        with psycopg.connect(os.environ["APP_DSN"], autocommit=True) as conn:
            yield conn

    def ask():
        with lifeguard.unit():
            connection.get().execute("SELECT 1").fetchone()
            with pool.connection() as conn:
                conn.execute("SELECT 1").fetchone()

    with lifeguard.worker(resources=[pool]):
        pool.wait()
        ask()
        child = os.fork()
        if child == 0:
            if kind == "uses":
                ask()
                pool.wait()
            log.write("child is up")
            if who == "child":
                os._exit(3)
            log.wait_count("go", 1, timeout=60)
            os._exit(0)
        log.write("parent is up", child=child)
        if who == "parent":
            log.wait_count("child is up", 1, timeout=60)
            os._exit(4)
        log.wait_count("go", 1, timeout=60)
        ask()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        log.write("parent goes on", status=status)
"""


@pytest.mark.parametrize("kind", ["idle", "uses"])
@pytest.mark.parametrize("who", ["parent", "killed parent", "child"])
def test_one_that_ends_on_the_spot(
    who: str, kind: str, start: Start, pg: Postgres, appname: str
) -> None:
    """``os._exit`` or SIGKILL: the backends of the process that ended are gone at once, although
    the other lives, and the other keeps its own. Also those of a connection without a pool."""
    program = start("-c", textwrap.dedent(ABRUPT), kind, who)
    log = program.log
    assert log.wait_count("child is up", 1, timeout=60) == 1, program.said()
    assert log.wait_count("parent is up", 1, timeout=60) == 1, program.said()
    if who == "killed parent":
        program.popen.kill()
    of_child = 3 if kind == "uses" else 0
    if who == "child":
        assert pg.wait_count(3, prefix=appname) == 3
        log.write("go")
        assert program.wait() == 0, program.said()
        assert log.read("parent goes on")[0]["status"] == 3
    else:
        assert program.wait() == (4 if who == "parent" else -signal.SIGKILL)
        assert pg.wait_count(of_child, prefix=appname) == of_child
        (up,) = log.read("parent is up")
        os.kill(up["child"], 0)  # it lives
        log.write("go")
    assert pg.wait_count(0, prefix=appname) == 0


def test_a_child_that_ends_as_usual_closes_what_it_opened_anew(
    start: Start, pg: Postgres, appname: str
) -> None:
    """It uses the pool that was open before the fork, without a worker of its own, and ends. The
    pool is closed then: one that is still open costs up to 20 s on Python 3.13."""
    program = start("-c", textwrap.dedent(USES_AND_ENDS))
    assert program.wait() == 0, program.said()
    (child,) = program.log.read("child ends")
    assert child["status"] == 0
    ends = program.log.read("at exit")
    assert [(event["closed"], event.pid == program.popen.pid) for event in ends] == [
        (True, False),
        (True, True),
    ]
    assert pg.wait_count(0, prefix=appname) == 0


USES_AND_ENDS = """
    import atexit, os, sys
    from psycopg_pool import ConnectionPool
    import lifeguard
    from tests.support.eventlog import EventLog

    log = EventLog.from_env()
    pool = ConnectionPool(os.environ["APP_DSN"], open=True, min_size=1, max_size=1)
    atexit.register(lambda: log.write("at exit", closed=pool.closed))  # the first is the last
    lifeguard.Lifeguard().adopt(pool)
    with pool.connection() as conn:
        conn.execute("SELECT 1")
    child = os.fork()
    if child == 0:
        with pool.connection() as conn:
            conn.execute("SELECT 1")
        sys.exit(0)
    log.write("child ends", status=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


# -- forks of a worker that is not open -----------------------------------------------------------


@pytest.mark.parametrize("when", ["opening", "closing"])
def test_a_resource_that_forks(when: str, guard: lifeguard.Lifeguard, dsn: str) -> None:
    """The very thread that opens or closes the worker forks, in the middle of it. The child opens a
    worker of its own, and the parent finishes what it was doing."""
    pool = ConnectionPool(dsn, open=False, min_size=1, max_size=1, timeout=10)
    answers: list[Any] = []
    parent = os.getpid()

    def child() -> list[Any]:
        with guard.worker(resources=[pool]), guard.unit():
            return list(ask(pool, 7))

    @guard.resource
    def first() -> Iterator[str]:
        yield "first"

    @guard.resource
    def forks() -> Iterator[str]:
        if os.getpid() == parent and when == "opening":
            answers.append(in_fork(child))
        yield "forks"
        if os.getpid() == parent and when == "closing":
            answers.append(in_fork(child))

    with guard.worker(resources=[pool]):
        assert (first.get(), forks.get()) == ("first", "forks")
        _, mine = ask(pool, 1)
    ((asked, theirs),) = answers
    assert asked == 7
    assert theirs != mine
    assert pool.closed


def test_a_child_of_a_process_that_was_told_to_end(start: Start) -> None:
    """The parent has had its SIGTERM, and waits for its units, one of which forks. The child, which
    has a worker of its own, is told to end by a signal of its own: once is enough."""
    program = start("-c", textwrap.dedent(FORKS_AT_THE_END))
    assert program.wait() == -signal.SIGTERM, program.said()
    assert program.log.read("child ended")[0]["status"] == 7
    assert program.log.count("child closes") == 1


FORKS_AT_THE_END = """
    import os, signal, sys, threading, time, warnings
    import lifeguard
    from tests.support.eventlog import EventLog

    warnings.simplefilter("ignore")
    log = EventLog.from_env()
    parent = os.getpid()

    @lifeguard.resource
    def audit():
        yield
        log.write("parent closes" if os.getpid() == parent else "child closes")

    def child():
        with lifeguard.unit():
            log.write("child is up")
            log.wait_count("never", 1, timeout=20)

    def job():
        with lifeguard.unit():
            log.write("unit runs")
            log.wait_count("parent unwinds", 1)
            while not lifeguard._default._worker.state.name == "closing":
                time.sleep(0.01)
            pid = os.fork()
            if pid == 0:
                try:
                    child()
                except SystemExit:
                    lifeguard._core.ends.run(os.getpid())
                    os._exit(7)
                os._exit(9)  # it was not told
            log.wait_count("child is up", 1)
            os.kill(pid, signal.SIGTERM)
            log.write("child ended", status=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    with lifeguard.worker():
        thread = threading.Thread(target=job)
        thread.start()
        log.wait_count("unit runs", 1)
        try:
            os.kill(parent, signal.SIGTERM)
        finally:
            log.write("parent unwinds")
"""
