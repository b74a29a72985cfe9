"""procrastinate: coroutines on a loop, plain functions in threads beside it, jobs in PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import procrastinate
import pytest
from procrastinate import PsycopgConnector, SyncPsycopgConnector
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool

import lifeguard
import lifeguard.procrastinate
from lifeguard.testing import Postgres
from tests.queues.apps import MAX_SIZE
from tests.queues.worker import Worker, Workers

Job = tuple[Any, ...]

SELECTS: list[Job] = [("select", n) for n in range(10)]
SELECTS += [("select_sync", n) for n in range(10, 20)]
KEEPERS: list[Job] = [(name, how) for how in ("fails", "ok") for name in ("keep", "keep_sync")]


class Queue:
    """procrastinate's tables, and a client that puts jobs into them."""

    def __init__(self, pg: Postgres, schema: str, name: str) -> None:
        self.pg = pg
        self.schema = schema
        self.conninfo = make_conninfo(pg.named(name), options=f"-c search_path={schema}")
        connector = SyncPsycopgConnector(conninfo=self.conninfo, min_size=1)
        self.app = procrastinate.App(connector=connector)

    def send(self, name: str, jobs: list[Job]) -> None:
        """To the worker of this name."""
        queue = short(name)
        for job, arg in jobs:
            argument = "how" if job.startswith("keep") else "n"
            self.app.configure_task(job, queue=queue).defer(**{argument: arg})


def short(name: str) -> str:
    """A queue's name is a part of a PostgreSQL channel's, which may have 63 characters."""
    return name.partition(".")[2]


@pytest.fixture(scope="module")
def schema(pg: Postgres) -> Iterator[str]:
    """Their tables, in a schema of their own."""
    name = f"procrastinate_{os.getpid()}"
    with pg.connect() as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    with Queue(pg, name, "schema").app.open() as app:
        app.schema_manager.apply_schema()
    yield name
    with pg.connect() as connection:
        connection.execute(f"DROP SCHEMA {name} CASCADE")


@pytest.fixture
def queue(pg: Postgres, appname: str, schema: str) -> Iterator[Queue]:
    queue = Queue(pg, schema, f"{appname}client")
    with queue.app.open():
        yield queue


Run = Callable[..., Worker]


@pytest.fixture
def run(start: Workers, queue: Queue) -> Run:
    def run(jobs: list[Job], *options: str, **environ: Any) -> Worker:
        """A worker whose jobs are there when it starts."""
        app = "--app=tests.queues.apps.procrastinate_app.app"
        name = start.next_name
        queue.send(name, jobs)
        argv = ["-m", "procrastinate", app, "worker", "-q", short(name), *options]
        return start(*argv, APP_SCHEMA=queue.schema, **environ)

    return run


def check_closed_where_opened(worker: Worker) -> None:
    """Each pool once, on the worker's loop, in its thread."""
    keys = ("kind", "loop", "ident")
    opened = sorted([e[key] for key in keys] for e in worker.events("opened"))
    closed = sorted([e[key] for key in keys] for e in worker.events("closed"))
    assert opened == closed
    assert len(opened) == 2


def test_what_a_job_does_not_give_back_is_back_with_its_end(run: Run) -> None:
    """Jobs that fail, are retried, or just forget, on the loop and in threads: after two of them
    the pool is empty for good. Guarded, each job gets its connection."""
    selects: list[Job] = [("select", 1), ("select_sync", 2)]
    bare = run([*KEEPERS, *selects], "--one-shot", bare=True, APP_KEPT=str(len(KEEPERS)))
    guarded = run([*KEEPERS, *SELECTS], "--one-shot", APP_MODE="install")
    assert guarded.wait() == 0
    assert sorted(event["n"] for event in guarded.events("answered")) == list(range(20))
    for answered in guarded.events("answered"):  # and the unit ended where the job ran
        (ended,) = [e for e in guarded.events("ended") if e["n"] == answered["n"]]
        assert (ended["ident"], ended["loop"]) == (answered["ident"], answered["loop"])
    assert guarded.count("ended keep") == guarded.count("kept") == 5  # one was tried again
    assert guarded.said().count("was not given back by the unit's end") == 5
    check_closed_where_opened(guarded)
    bare.wait_for_output("PoolTimeout: couldn't get a connection", 2)
    assert bare.count("answered") == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_pools_close_with_the_worker_on_its_loop(run: Run, signum: int) -> None:
    """A job that would run on is aborted, and its unit over, before the pools close."""
    timeout = "--shutdown-graceful-timeout=0.2"
    worker = run([*SELECTS, ("keep", "hangs")], timeout, APP_MODE="install")
    worker.wait_for("answered", 20)
    worker.wait_for("kept")
    assert worker.count("connected") <= 2 * MAX_SIZE
    assert worker.stop(signum) == 0
    check_closed_where_opened(worker)
    last = [event.event for event in worker.events("ended keep", "closed")]
    assert last == ["ended keep", "closed", "closed"]


def test_a_job_that_is_aborted_gives_back_what_it_has(run: Run, queue: Queue) -> None:
    """procrastinate cancels an async job when it is asked to. The next one has its connection."""
    worker = run([("keep", "hangs")] * MAX_SIZE, APP_MODE="install")
    worker.wait_for("kept", MAX_SIZE)
    for job in queue.app.job_manager.list_jobs(queue=short(worker.name), status="doing"):
        queue.app.job_manager.cancel_job_by_id(job.id, abort=True)
    worker.wait_for("ended keep", MAX_SIZE)
    queue.send(worker.name, [("select", 1)])
    worker.wait_for("answered")
    worker.send()
    worker.wait()
    check_closed_where_opened(worker)


def test_the_decorator_alone_opens_with_the_first_job(run: Run) -> None:
    """It is enough where all jobs are async, or all resources sync. The pool closes as the loop
    ends."""
    on_loop = run([("select", n) for n in range(5)], "--one-shot", APP_POOLS="async")
    in_threads = run([("select_sync", n) for n in range(5)], "--one-shot", APP_POOLS="sync")
    for worker, kind in ((on_loop, "async"), (in_threads, "sync")):
        assert worker.wait() == 0
        assert worker.count("ended") == 5
        assert [event["kind"] for event in worker.events("opened", "closed")] == [kind, kind]


def test_django_has_no_connection_after_a_job(run: Run, pg: Postgres) -> None:
    """In a process with Django and an app of one's own, the threads of sync jobs keep what a job
    opened (procrastinate#1551)."""
    sides = [
        run([("django", n) for n in range(12)], bare=True, APP_DJANGO="1"),
        run([("django", n) for n in range(12)], APP_DJANGO="1", APP_MODE="install", APP_POOLS=""),
    ]
    check_no_connection_after_a_job(pg, *sides, queries=12)
    assert sides[1].stop() == 0


def test_the_app_for_django_is_installed_by_a_setting(start: Workers, queue: Queue) -> None:
    """It closes the connections of its jobs by itself. Those in threads that a job starts stay,
    but not with lifeguard: installed by PROCRASTINATE_ON_APP_READY, run by manage.py."""
    sides = []
    for bare in (True, False):
        queue.send(start.next_name, [("inner", n) for n in range(6)])
        sides.append(
            start(
                *("-m", "django", "procrastinate", "worker", "-q", short(start.next_name)),
                bare=bare,
                DJANGO_SETTINGS_MODULE="tests.queues.apps.procrastinate_django",
                APP_SCHEMA=queue.schema,
                APP_POOLS="sync async",
            )
        )
    check_no_connection_after_a_job(queue.pg, *sides, queries=18)
    guarded = sides[1]
    queue.send(guarded.name, [("own", 6)])
    guarded.wait_for("ended", 7)
    assert guarded.stop() == 0
    check_closed_where_opened(guarded)


def check_no_connection_after_a_job(
    pg: Postgres, bare: Worker, guarded: Worker, *, queries: int
) -> None:
    def alive(worker: Worker) -> int:
        pids = [event["pid"] for event in worker.wait_for("queried", queries)]
        with pg.connect() as connection:
            found = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)", [pids]
            ).fetchone()
        assert found is not None
        return int(found[0])

    deadline = time.monotonic() + 60
    while alive(guarded):  # the last job may not have ended yet
        assert time.monotonic() < deadline, guarded.said()
        time.sleep(0.02)
    assert alive(bare) > 0


def test_a_worker_inside_of_a_program_has_what_it_was_given(
    pg: Postgres, queue: Queue, appname: str, dsn: str
) -> None:
    """As in tests: the worker opens the pools that install() got, and closes them when it stops."""
    guard = lifeguard.Lifeguard()
    pool = AsyncConnectionPool(dsn, open=False, min_size=1, max_size=2)
    connector = PsycopgConnector(conninfo=queue.conninfo, min_size=1)
    app = procrastinate.App(connector=connector)
    lifeguard.procrastinate.install(app, resources=[pool], guard=guard)
    ended: list[int] = []

    @app.task(name="one", queue=short(appname))
    async def one(n: int) -> None:
        guard.callback(ended.append, n)
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")

    @app.task(name="two", queue=short(appname))
    @guard.task
    def two(n: int) -> None:
        guard.callback(ended.append, n)

    async def main() -> None:
        async with app.open_async():
            for _ in range(2):  # one worker after another
                await one.defer_async(n=1)
                await two.defer_async(n=2)
                await app.run_worker_async(
                    queues=[short(appname)], wait=False, install_signal_handlers=False
                )
                assert pool.closed

    asyncio.run(main())
    assert ended == [1, 2, 1, 2]


def test_the_decorator_wants_the_function() -> None:
    """Above @app.task it would guard the object that sends the job."""
    app = procrastinate.App(connector=SyncPsycopgConnector())
    with pytest.raises(TypeError, match="directly above the function"):
        lifeguard.task(app.task(lambda: None, name="late"))  # type: ignore[arg-type]


def test_install_wants_an_app() -> None:
    """Django's own is not there yet when settings are read, and has a setting for that."""
    from procrastinate.contrib.django import app

    with pytest.raises(TypeError, match=r"PROCRASTINATE_ON_APP_READY"):
        lifeguard.procrastinate.install(app)
