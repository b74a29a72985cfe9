"""Dramatiq's workers: what their threads leave open, and what happens when they end.

Stands apart from the other queues because Dramatiq is the one that runs its messages in threads of
a process it forks, with an event loop of its own beside them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import AsyncIO
from psycopg_pool import ConnectionPool

import lifeguard.dramatiq
from lifeguard.testing import Postgres
from tests.queues.worker import Worker, Workers

JOBS = 60
THREADS = 4


class Dramatiq:
    """A worker of Dramatiq, and the client that sends it messages."""

    def __init__(
        self,
        start: Workers,
        *,
        command: tuple[str, ...] = ("-m", "dramatiq"),
        bare: bool = False,
        processes: int = 1,
        **env: str,
    ) -> None:
        options = f"--processes {processes} --threads {THREADS} --worker-shutdown-timeout 10000"
        app = "tests.queues.apps.dramatiq_app"
        self.worker: Worker = start(*command, app, *options.split(), bare=bare, **env)
        self.broker = RedisBroker(url=start.broker, namespace=self.worker.name, middleware=[])
        self.broker.declare_queue("default")
        self.worker.wait_for("ready", processes)

    def send(self, actor: str, *args: Any, **options: Any) -> None:
        self.broker.enqueue(
            dramatiq.Message(
                queue_name="default", actor_name=actor, args=args, kwargs={}, options=options
            )
        )


def asked(worker: Worker) -> list[int]:
    return sorted(event["n"] for event in worker.events("asked"))


def test_the_threads_of_a_bare_worker_each_keep_a_connection(start: Workers, pg: Postgres) -> None:
    """What people see in pg_stat_activity: an idle connection per thread, after the last one."""
    app = Dramatiq(start, bare=True)
    for n in range(JOBS):
        app.send("fail" if n % 6 == 5 else "query", n)
    app.worker.wait_for("processed", JOBS)
    assert asked(app.worker) == list(range(JOBS))
    used = {event.thread for event in app.worker.events("asked")}
    assert pg.count(prefix=f"{app.worker.name}django") == len(used) >= 1
    app.worker.stop()


def test_no_message_leaves_a_connection_behind(start: Workers, pg: Postgres) -> None:
    """60 messages on 4 threads, every sixth fails: none idle when the last is processed.

    Then messages that do not give back what they borrowed (they end, fail, run into their time
    limit), more of them than the pool is large: each unit gives it back, so all are served. Sync
    and async actors in one worker; the async pool is on Dramatiq's loop, and SIGTERM closes both.
    """
    app = Dramatiq(start)
    worker = app.worker
    for n in range(JOBS):
        app.send("fail" if n % 6 == 5 else "query", n)
    worker.wait_for("processed", JOBS)
    assert asked(worker) == list(range(JOBS))
    assert pg.wait_count(0, prefix=f"{worker.name}django") == 0

    for actor in ("keep", "akeep"):
        for how in ("returns", "fails") * 2:
            app.send(actor, how)
    for _ in range(2):
        app.send("late", time_limit=1_000)
        app.send("akeep", "hangs", time_limit=1_000)
    for n in range(10):
        app.send("select", n)
    worker.wait_for("processed", JOBS + 22)
    assert sorted(event["n"] for event in worker.events("answered")) == list(range(10))
    kept = Counter(event["how"] for event in worker.events("kept"))
    ended = Counter(event["how"] for event in worker.events("ended keep"))
    assert ended["returns"] == ended["fails"] == kept["returns"] == kept["fails"] == 4
    assert 4 >= ended["hangs"] >= kept["hangs"] >= 1  # the limit may come first, if all is slow
    assert worker.count("hung") == 0
    [opened] = (event for event in worker.events("opened") if event["kind"] == "async")
    loops = {event["loop"] for event in worker.events("answered")}
    assert loops == {opened["loop"]} != {None}

    assert worker.stop() == 0
    closed = {event["kind"]: event["loop"] for event in worker.events("closed")}
    assert closed == {"sync": opened["loop"], "async": opened["loop"]}
    assert "Closed abruptly" not in worker.said()


def test_each_process_opens_its_own_and_closes_it_once(start: Workers) -> None:
    """Two forked worker processes; a restart by SIGHUP, while a message runs, and then SIGTERM.

    The middleware is the first here, so that AsyncIO is told to stop the loop before it.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    app = Dramatiq(start, processes=2, APP_FIRST="1", PATH=path)  # where the restart finds python
    worker = app.worker
    for n in range(20):
        app.send("query", n)
        app.send("select", n)
    worker.wait_for("processed", 40)
    app.send("hang")
    worker.wait_for("kept")
    worker.send(signal.SIGHUP)
    worker.wait_for("ready", 4)
    app.send("query", 99)
    worker.wait_for("asked", 21)
    assert worker.stop() == 0
    opened = [(event.pid, event["kind"]) for event in worker.events("opened")]
    closed = [(event.pid, event["kind"]) for event in worker.events("closed")]
    assert sorted(opened) == sorted(closed)
    assert len(set(opened)) == len(opened) >= 4
    assert worker.pid not in dict(opened)
    assert worker.count("hung") == 0
    assert "Closed abruptly" not in worker.said()


def test_greenlets_leave_nothing_behind(start: Workers, pg: Postgres) -> None:
    """``dramatiq-gevent``: the same units, each in its greenlet, and one pool for all of them."""
    command = (str(Path(sys.executable).parent / "dramatiq-gevent"),)
    app = Dramatiq(start, command=command, APP_POOLS="sync", APP_NO_LOOP="1")
    worker = app.worker
    for n in range(20):
        app.send("fail" if n % 6 == 5 else "query", n)
    for how in ("returns", "fails") * 3:
        app.send("keep", how)
    worker.wait_for("processed", 26)
    assert asked(worker) == list(range(20))
    assert worker.count("ended keep") == 6
    assert pg.wait_count(0, prefix=f"{worker.name}django") == 0
    assert worker.stop() == 0
    assert worker.count("opened") == worker.count("closed") == 1


def test_actors_are_guarded_whichever_came_first() -> None:
    """Added before or after an actor is declared; over @lifeguard.task there is one unit.

    The wrong order of the decorators is refused, and so is what is no broker.
    """
    guard = lifeguard.Lifeguard()
    broker = StubBroker(middleware=[AsyncIO()])
    units: list[object] = []

    def note() -> None:
        units.append(guard.current.get())

    before = dramatiq.actor(note, broker=broker, actor_name="before")
    own = dramatiq.actor(guard.task(note), broker=broker, actor_name="own")
    own_function = own.fn

    @guard.task
    async def anote() -> None: ...

    aown = dramatiq.actor(anote, broker=broker, actor_name="aown")
    aown_function = aown.fn
    lifeguard.dramatiq.install(broker, guard=guard)
    after = dramatiq.actor(note, broker=broker, actor_name="after")
    for actor in (before, own, after):
        actor()
    assert None not in units
    assert len(set(map(id, units))) == 3
    assert own.fn is own_function
    assert aown.fn is aown_function
    with pytest.raises(TypeError, match=r"put @lifeguard\.task directly above the function"):
        guard.task(after)
    not_one: Any = "redis://127.0.0.1"
    with pytest.raises(TypeError, match="takes a broker of Dramatiq, not 'redis:"):
        lifeguard.dramatiq.install(not_one)


def test_a_worker_inside_of_a_test_closes_what_it_opened_and_nothing_else(
    dsn: str, pg: Postgres, appname: str
) -> None:
    """With StubBroker, as Dramatiq's guide to testing has it: twice in one process."""
    guard = lifeguard.Lifeguard()
    opened: list[str] = []

    class Noted:
        def __enter__(self) -> None:
            opened.append("opened")

        def __exit__(self, *exc_info: object) -> None:
            opened.append("closed")

    @guard.resource
    def db() -> Iterator[ConnectionPool]:
        with ConnectionPool(dsn, open=False, min_size=1, max_size=2) as pool:
            yield pool

    broker = StubBroker(middleware=[])
    lifeguard.dramatiq.install(broker, resources=[Noted()], guard=guard)

    @dramatiq.actor(broker=broker)
    def keep() -> None:
        db.get().getconn().execute("SELECT 1")

    for _ in range(2):
        worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=2)
        worker.start()
        with pytest.warns(lifeguard.LeakWarning):  # noqa: PT031
            for _ in range(6):
                keep.send()
            broker.join("default", timeout=60_000)
        worker.stop()
        assert pg.wait_count(0, prefix=appname) == 0
    assert opened == ["opened", "closed"] * 2

    with guard.worker():  # the test's own: a worker that ends leaves it open
        worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
        worker.start()
        worker.stop()
        assert db.get() is not None
    broker.close()
