"""RQ's workers: a process per job, which ends by ``os._exit``, and what it inherits and leaves.

Stands apart because no hook of Python's runs at the end of these processes, and because what the
parent has open is open in each of them as well.
"""

from __future__ import annotations

import gc
import os
import signal
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from rq import Queue
from rq.job import Job
from rq.timeouts import TimerDeathPenalty

import lifeguard.rq
from lifeguard.testing import Postgres
from tests.queues.worker import Worker, Workers

BODIES = "tests.queues.apps.bodies."
JOBS = "tests.queues.apps.jobs."


@pytest.fixture
def connection(broker: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(broker) as connection:
        yield connection


@pytest.fixture
def queue(start: Workers, connection: redis.Redis) -> Queue:
    """The queue of the worker that this test starts. Jobs can be in it before that."""
    return Queue(f"{start.name}0:", connection=connection, default_timeout=30)


def run(start: Workers, kind: str, *how: str, **options: Any) -> Worker:
    return start("-m", "tests.queues.apps.rq_worker", kind, *how, **options)


def statuses(jobs: list[Job]) -> list[str]:
    return [str(job.get_status(refresh=True).value) for job in jobs]


def opened_and_closed(worker: Worker) -> list[tuple[int, str]]:
    """Which process opened which pool; each is closed once, by the one that opened it."""
    opened = [(event.pid, event["kind"]) for event in worker.events("opened")]
    closed = [(event.pid, event["kind"]) for event in worker.events("closed")]
    assert sorted(opened) == sorted(closed)
    assert len(set(opened)) == len(opened)
    return opened


def test_bare_all_jobs_talk_on_the_connection_of_their_parent(start: Workers, queue: Queue) -> None:
    """Each of ten processes believes that it has a connection of its own. It is one backend."""
    jobs = [queue.enqueue(BODIES + "query", n) for n in range(10)]
    worker = run(start, "Worker", "burst", bare=True, APP_PARENT="1")
    assert worker.wait() == 0
    assert statuses(jobs) == ["finished"] * 10
    asked = worker.events("asked")
    assert len({event.pid for event in asked}) == 11
    assert len({event["backend"] for event in asked}) == 1


def test_each_process_opens_its_own_and_closes_it_before_it_exits(
    start: Workers, queue: Queue
) -> None:
    """Jobs that end well, fail, keep what they borrowed, run into their timeout.

    The parent has used the same connection and the same pool, and uses them again at the end.
    """
    good = [queue.enqueue(BODIES + "query", n) for n in range(5)]
    good += [queue.enqueue(JOBS + "keep_sync", "returns")]
    bad = [queue.enqueue(JOBS + "keep_sync", "fails"), queue.enqueue(BODIES + "fail", 8)]
    bad += [queue.enqueue(BODIES + "hang", True)]
    worker = run(start, "Worker", "burst", APP_PARENT="1", APP_POOLS="sync")
    assert worker.wait() == 0
    assert statuses(good) == ["finished"] * len(good)
    assert statuses(bad) == ["failed"] * len(bad)
    kept = [event["how"] for event in worker.events("ended keep")]
    assert sorted(kept) == ["fails", "hangs", "returns"]
    assert worker.count("hung") == 0

    first, *asked, last = worker.events("asked")
    assert first.pid == last.pid == worker.pid
    assert first["backend"] == last["backend"]
    backends = {event["backend"] for event in asked}
    assert len(backends) == len(asked) == 6
    assert first["backend"] not in backends
    assert len(opened_and_closed(worker)) == 1 + len(good) + len(bad)


def test_simple_worker_opens_once_for_all_its_jobs(
    start: Workers, queue: Queue, pg: Postgres
) -> None:
    """One process: one pool of each kind for all jobs, closed when it is told to stop, after the
    job that runs."""
    jobs = [queue.enqueue(JOBS + name, 1) for name in ("select", "select_sync") * 5]
    jobs += [queue.enqueue(BODIES + "query", 2)]
    worker = run(start, "SimpleWorker")
    worker.wait_for("asked")
    assert pg.wait_count(0, prefix=f"{worker.name}django") == 0
    jobs += [queue.enqueue(JOBS + name, "returns") for name in ("keep", "keep_sync") * 3]
    jobs += [queue.enqueue(BODIES + "until_told_to_stop")]
    worker.wait_for("waiting")
    assert worker.count("ended keep") == 6
    assert worker.stop() == 0
    assert statuses(jobs) == ["finished"] * len(jobs)
    assert len({event["loop"] for event in worker.events("answered")} - {None}) == 1
    assert sorted(opened_and_closed(worker)) == [(worker.pid, "async"), (worker.pid, "sync")]


def test_bare_simple_worker_keeps_a_connection_after_its_last_job(
    start: Workers, queue: Queue, pg: Postgres
) -> None:
    """CONN_MAX_AGE is 0, and yet the connection stays for as long as the worker waits."""
    job = queue.enqueue(BODIES + "query", 1)
    worker = run(start, "SimpleWorker", bare=True)
    worker.wait_for("asked")
    deadline = time.monotonic() + 60
    while statuses([job]) != ["finished"]:
        assert time.monotonic() < deadline, worker.said()
        time.sleep(0.01)
    assert pg.count(prefix=f"{worker.name}django") == 1


@pytest.mark.parametrize("kind", ["Worker", "SpawnWorker"])
def test_a_job_that_is_terminated_closes_what_it_had(
    start: Workers, queue: Queue, kind: str
) -> None:
    """SIGTERM to the job's own process: it unwinds, fails, and closes. RQ's dies on the spot.

    The parent gets a SIGTERM as well, which waits for its job, as ever.
    """
    job = queue.enqueue(BODIES + "hang")
    worker = run(start, kind)
    [kept] = worker.wait_for("kept")
    assert kept.pid != worker.pid
    worker.send(signal.SIGTERM)
    os.kill(kept.pid, signal.SIGTERM)
    assert worker.wait() == 0
    assert statuses([job]) == ["failed"]
    assert worker.count("ended keep") == 1
    assert [pid for pid, _ in opened_and_closed(worker)] == [kept.pid] * 2
    assert worker.count("hung") == 0


def test_the_command_of_rq_takes_the_class_and_so_does_an_older_rq(
    start: Workers, queue: Queue
) -> None:
    """``rq worker --worker-class lifeguard.rq.Worker``, with the oldest RQ that is supported.

    Two of the jobs are async. One of them runs into its timeout: it is cancelled, and closes.
    """
    jobs = [queue.enqueue(JOBS + name, "returns") for name in ("keep", "keep_sync")]
    late = queue.enqueue(BODIES + "ahang")
    worker = start(
        "-c",
        "import rq.cli; rq.cli.main()",
        *f"worker --burst --worker-class lifeguard.rq.Worker --url {start.broker}".split(),
        queue.name,
        versions="rq20",
    )
    assert worker.wait() == 0
    assert statuses([*jobs, late]) == ["finished", "finished", "failed"]
    assert worker.count("ended keep") == 3
    assert worker.count("hung") == 0
    assert "JobTimeoutException" in worker.said()
    assert len(opened_and_closed(worker)) == 2 * 3


def test_a_guard_and_resources_of_ones_own(start: Workers, queue: Queue) -> None:
    """The mixin goes in front of any class of RQ, and takes both as attributes."""
    job = queue.enqueue("tests.queues.apps.rq_own.see")
    worker = start("-c", "from tests.queues.apps import rq_own; rq_own.main()")
    assert worker.wait() == 0
    assert statuses([job]) == ["finished"]
    [opened], [seen], [closed] = map(worker.events, ("opened", "seen", "closed"))
    assert opened.pid == seen.pid == closed.pid == worker.pid
    assert opened.at < seen.at < closed.at
    assert seen["in_unit"]


def test_a_worker_inside_of_a_test_closes_what_it_opened(
    queue: Queue, connection: redis.Redis
) -> None:
    """SimpleWorker in a burst, as RQ's guide to testing has it: twice in one process, which lives
    on. A job's arguments go with it, without the garbage collector."""
    noted: list[str] = []

    class Noted:
        def __enter__(self) -> None:
            noted.append("opened")

        def __exit__(self, *exc_info: object) -> None:
            noted.append("closed")

    class Worker(lifeguard.rq.SimpleWorker):
        guard = lifeguard.Lifeguard()
        resources = [Noted()]
        death_penalty_class = TimerDeathPenalty  # SIGALRM is pytest-timeout's

        def _install_signal_handlers(self) -> None:
            pass  # they would stay, for all tests after this one

        def execute_job(self, job: Job, queue: Queue) -> None:
            jobs.append(weakref.ref(job))
            super().execute_job(job, queue)

    jobs: list[weakref.ref[Job]] = []
    gc.disable()
    try:
        for _ in range(2):
            queue.enqueue(abs, -1)
            Worker([queue], connection=connection).work(burst=True)
            noted.append("goes on")
        assert [job() for job in jobs] == [None, None]
    finally:
        gc.enable()
    assert noted == ["opened", "closed", "goes on"] * 2
