"""Django's tasks: called by whoever enqueues them, or by a worker that has its queue in the
database. Django 6 has them built in; for older ones they are a package, django-tasks.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lifeguard.testing import Postgres
from tests.queues.apps import MAX_SIZE
from tests.queues.worker import Worker, Workers

Job = tuple[Any, ...]
Run = Callable[..., Worker]

APP = "tests.queues.apps.django_worker"

KEEPERS: list[Job] = [("keep_sync", how) for how in ("fails", "ok", "fails")]
SELECTS: list[Job] = [("select_sync", n) for n in range(5)]


@pytest.fixture(scope="module")
def schema(pg: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """With the tables of the queue, and one for rows."""
    name = f"django_tasks_{os.getpid()}"
    with pg.connect() as connection:
        connection.execute(f"CREATE SCHEMA {name}; CREATE TABLE {name}.rows (what text)")
        start = Workers(pg, f"{name}:", "", tmp_path_factory.mktemp("migrate"), [])
        migrate = start("-m", APP, "migrate", APP_SCHEMA=name, APP_POOLS="")
        try:
            assert migrate.wait() == 0, migrate.said()
            yield name
        finally:
            migrate.kill()
            connection.execute(f"DROP SCHEMA {name} CASCADE")


@pytest.fixture
def run(start: Workers, schema: str) -> Run:
    def run(*options: str, jobs: list[Job] | None = None, **environ: Any) -> Worker:
        """A worker that puts *jobs* into its queue and works them off."""
        environ = {"APP_POOLS": "sync", "APP_JOBS": json.dumps(jobs or []), **environ}
        return start("-m", APP, *options, APP_SCHEMA=schema, **environ)

    return run


def alive(pg: Postgres, pids: list[int], expected: int) -> int:
    """How many of these backends are there, once it is as expected: they leave after a client."""
    deadline = time.monotonic() + 30
    with pg.connect() as connection:
        while True:
            (found,) = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)", [pids]
            ).fetchone() or (0,)
            if found == expected or time.monotonic() > deadline:
                return int(found)
            time.sleep(0.02)


def test_a_task_that_is_called_inline_leaves_its_caller_alone(
    run: Run, pg: Postgres, schema: str
) -> None:
    """The immediate backend calls the task where it is enqueued, in a transaction for instance. A
    clean-up in task_finished closes the caller's connection there: its rows are gone, without an
    error. The end of the task's unit is none of the caller's business."""
    for bare, rows in ((True, 0), (False, 4)):
        program = run("inline", bare=bare, APP_POOLS="")
        assert program.wait() == 0, program.said()
        statuses = [event["status"] for event in program.events("enqueued")]
        assert statuses == ["SUCCESSFUL", "FAILED"]
        (inside,), (around,) = program.events("asked inline"), program.events("around it")
        assert inside["pid"] == around["pid"]
        with pg.connect() as connection:
            (found,) = connection.execute(f"SELECT count(*) FROM {schema}.rows").fetchone() or ()
        assert found == rows
    events = [event.event for event in program.events("ended write", "enqueued", "committed")]
    assert events == ["ended write", "enqueued", "committed"] * 2
    assert all(event["same"] for event in program.events("committed"))
    (refused,) = program.events("refused")  # the decorator above @task
    assert "directly above the function" in refused["said"]


def test_a_worker_has_what_its_tasks_left_back(run: Run, pg: Postgres) -> None:
    """Connections that a task borrows and keeps, and Django's in threads that a task starts."""
    jobs = [*KEEPERS, *SELECTS, ("inner", 1), ("inner", 2), ("until_told_to_stop",)]
    guarded = run(jobs=jobs)
    bare = run(jobs=[("inner", 1), *KEEPERS], bare=True)
    guarded.wait_for("waiting")
    assert [event["n"] for event in guarded.events("answered")] == list(range(5))
    assert guarded.count("ended") == 5
    assert guarded.count("ended keep") == 3
    assert guarded.count("connected") <= MAX_SIZE + 3  # for those that were taken back
    asked = [pid for event in guarded.events("asked") for pid in event["pids"]]
    assert alive(pg, asked, 0) == 0
    assert guarded.stop() == 0
    assert guarded.count("opened") == guarded.count("closed") == 1

    (asked_bare,) = bare.wait_for("asked")
    bare.wait_for("refused")
    assert alive(pg, asked_bare["pids"], 3) == 3


@pytest.mark.parametrize("end", ["batch", "SIGTERM twice"])
def test_the_pool_closes_with_the_worker(run: Run, end: str) -> None:
    """After the last task of a batch; and when a task that runs on is ended by a second signal."""
    if end == "batch":
        worker = run("--batch", jobs=SELECTS)
        last = ["ended", "closed"]
    else:
        worker = run(jobs=[("keep_sync", "hangs")])
        worker.wait_for("kept")
        worker.send(signal.SIGTERM)
        worker.wait_for("told")
        worker.send(signal.SIGTERM)
        last = ["ended keep", "closed"]
    assert worker.wait() == 0
    assert [event.event for event in worker.events("ended", "ended keep", "closed")][-2:] == last
    assert worker.count("connected") <= MAX_SIZE + 1  # for the one that was taken back
    assert worker.count("opened") == worker.count("closed") == 1


def test_async_tasks_share_a_loop_and_its_pool(run: Run, pg: Postgres) -> None:
    """Django makes a loop for each async task, and with it the pool would open each time; a plain
    task could not open it at all. In a worker they have one, and a second signal cancels."""
    jobs: list[Job] = [("select_sync", 0), *[("select", n) for n in range(1, 5)], ("read", 5)]
    worker = run(jobs=[*jobs, ("keep", "fails"), ("keep", "hangs")], APP_POOLS="sync async")
    worker.wait_for("kept", 2)
    worker.send(signal.SIGTERM)
    worker.wait_for("told")
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert [event["n"] for event in worker.events("answered")] == list(range(5))
    assert [event["n"] for event in worker.events("ended")] == list(range(5))
    assert alive(pg, [event["pid"] for event in worker.events("read")], 0) == 0
    opened = [(event["kind"], event["loop"]) for event in worker.events("opened")]
    closed = [(event["kind"], event["loop"]) for event in worker.events("closed")]
    assert sorted(opened) == sorted(closed)
    assert len(opened) == 2
    order = [event.event for event in worker.events("ended keep", "closed")]
    assert order == ["ended keep", "ended keep", "closed", "closed"]
