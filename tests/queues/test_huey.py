"""Huey: its own decorator over ``@lifeguard.task`` is all that it takes, in threads and processes.

Stands apart because there is no adapter to test: these are the facts that the docs rely on.
"""

from __future__ import annotations

import signal
from typing import Any

import pytest
from huey import MemoryHuey, RedisHuey
from huey.exceptions import ConfigurationError

import lifeguard
from lifeguard.testing import Postgres
from tests.queues.worker import Worker, Workers

JOBS = 60
WORKERS = 4
MODULES = {"select": "jobs", "keep": "jobs"}


class Huey:
    """A consumer of Huey, and the client that sends it tasks."""

    def __init__(self, start: Workers, kind: str, *, bare: bool = False) -> None:
        options = f"--worker-type {kind} --workers {WORKERS} --no-periodic --delay 0.05"
        app = "tests.queues.apps.huey_app.huey"
        command = ("-m", "huey.bin.huey_consumer", app, *options.split())
        self.worker: Worker = start(*command, bare=bare, APP_POOLS="sync")
        self.client = RedisHuey(self.worker.name, url=start.broker)
        self.worker.wait_for("ready", WORKERS)

    def send(self, name: str, *args: Any, **options: Any) -> None:
        def stub(*args: Any) -> None: ...

        stub.__module__ = f"tests.queues.apps.{MODULES.get(name, 'bodies')}"
        sent = self.client.task(name=name, **options)(stub)
        sent(*args)
        sent.unregister()

    def send_queries(self) -> None:
        for n in range(JOBS):
            self.send("fail" if n % 6 == 5 else "query", n)
        self.worker.wait_for("processed", JOBS)
        assert sorted(event["n"] for event in self.worker.events("asked")) == list(range(JOBS))


def test_each_bare_thread_keeps_a_connection(start: Workers, pg: Postgres) -> None:
    """One idle connection for each of the workers that had a task, for as long as they wait."""
    app = Huey(start, "thread", bare=True)
    app.send_queries()
    used = {(event.pid, event.thread) for event in app.worker.events("asked")}
    assert pg.count(prefix=f"{app.worker.name}django") == len(used) >= 1
    app.worker.stop(signal.SIGINT)


def test_threads_leave_nothing_behind(start: Workers, pg: Postgres) -> None:
    """None idle after the last task; what tasks did not give back is back; one pool, closed once.

    SIGINT is Huey's graceful stop.
    """
    app = Huey(start, "thread")
    worker = app.worker
    app.send_queries()
    assert pg.wait_count(0, prefix=f"{worker.name}django") == 0
    for how in ("returns", "fails") * 3:
        app.send("keep", how)
    for n in range(10):
        app.send("select", n)
    worker.wait_for("processed", JOBS + 16)
    assert worker.count("ended keep") == 6
    assert sorted(event["n"] for event in worker.events("answered")) == list(range(10))
    assert worker.stop(signal.SIGINT) == 0
    assert [event.pid for event in worker.events("opened")] == [worker.pid]
    assert [event.pid for event in worker.events("closed")] == [worker.pid]


def test_each_process_opens_its_own_and_closes_it(start: Workers, pg: Postgres) -> None:
    """Forked workers: a pool each, which the parent never opens. A timeout ends the unit, too.

    SIGTERM interrupts the task that runs.
    """
    app = Huey(start, "process")
    worker = app.worker
    app.send_queries()
    assert pg.wait_count(0, prefix=f"{worker.name}django") == 0
    for how in ("returns", "fails") * 3:
        app.send("keep", how)
    app.send("late", True, timeout=30)
    worker.wait_for("processed", JOBS + 7)
    app.send("hang")
    worker.wait_for("kept", 8)
    assert worker.stop(signal.SIGTERM) == 0
    assert worker.count("ended keep") == 8
    assert worker.count("hung") == 0
    opened = [event.pid for event in worker.events("opened")]
    closed = [event.pid for event in worker.events("closed")]
    assert sorted(opened) == sorted(closed)
    assert len(set(opened)) == len(opened) <= WORKERS
    assert worker.pid not in opened


def test_the_order_of_the_decorators() -> None:
    """Above Huey's, ours would guard the sending: it says so. Huey takes no async tasks."""
    huey = MemoryHuey(immediate=True)
    guard = lifeguard.Lifeguard()
    units: list[object] = []

    @huey.task()
    @guard.task
    def right() -> str:
        units.append(guard.current.get())
        return "done"

    assert right()() == "done"
    assert units
    assert units[0] is not None

    with pytest.raises(TypeError, match=r"put @lifeguard\.task directly above the function"):

        @guard.task
        @huey.task()
        def wrong() -> None: ...

    with pytest.raises(ConfigurationError, match="does not support async functions"):

        @huey.task()
        @guard.task
        async def never() -> None: ...
