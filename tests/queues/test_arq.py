"""arq: coroutines on one loop. The plain decorator is all it takes.

arq wants a redis client older than the one of this environment, so its workers have their own.
"""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from tests.queues.apps import MAX_SIZE
from tests.queues.worker import Worker, Workers


def arq(start: Workers, jobs: list[list[Any]], *options: str, **environ: Any) -> Worker:
    app = "tests.queues.apps.arq_app.WorkerSettings"
    environ |= {"APP_JOBS": json.dumps(jobs), "APP_POOLS": "async"}
    return start("-m", "arq", app, *options, versions="arq", **environ)


KEEPERS = [["keep", how] for how in ("fails", "retries", "ok")]
SELECTS = [["select", n] for n in range(10)]


def test_what_a_job_does_not_give_back_is_back_with_its_end(start: Workers) -> None:
    """Jobs that fail, are retried, run into their time limit: the pool is empty after two of them,
    for good. Guarded, every job of the same list gets its connection."""
    bare = arq(start, [*KEEPERS[:2], *SELECTS[:2]], "--burst", bare=True, APP_KEPT="2")
    jobs = [*KEEPERS, *SELECTS, ["thread"], ["keep a while", "hangs"]]
    guarded = arq(start, jobs, "--burst")
    assert guarded.wait() == 0
    assert sorted(event["n"] for event in guarded.events("answered")) == list(range(10))
    assert sorted(event["n"] for event in guarded.events("ended")) == list(range(10))
    keeps = [event["how"] for event in guarded.events("ended keep")]
    assert sorted(keeps) == ["fails", "hangs", "ok", "retries", "retries"]
    assert guarded.said().count("was not given back by the unit's end") == 5
    assert guarded.count("opened") == guarded.count("closed") == 1
    (inner,), (ended,) = guarded.events("thread"), guarded.events("thread ended")
    assert inner["ident"] == ended["ident"]
    assert bare.wait() == 0
    assert bare.said().count("select failed, PoolTimeout") == 2
    assert (bare.count("kept"), bare.count("answered")) == (2, 0)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_pool_closes_with_the_worker_on_its_own_loop(start: Workers, signum: int) -> None:
    """A job that runs is cancelled and its unit over before the pool closes, where it opened."""
    worker = arq(start, [*SELECTS, ["keep", "hangs"]])
    worker.wait_for("answered", 10)
    worker.wait_for("kept")
    worker.stop(signum)
    (opened,), (closed,) = worker.events("opened"), worker.events("closed")
    assert (closed.pid, closed["loop"]) == (opened.pid, opened["loop"])
    assert [event.event for event in worker.events("ended keep", "closed")] == [
        "ended keep",
        "closed",
    ]
    assert worker.count("connected") <= MAX_SIZE + 1  # for the one that was taken back
    assert "Task was destroyed" not in worker.said()  # the pool's own tasks have ended


def test_it_closes_where_arq_calls_no_on_shutdown(start: Workers) -> None:
    """A job that is cancelled in its on_job_end hook fails the worker's close(), and on_shutdown
    is never called: the pool that people close there stays open."""
    workers = [arq(start, [["select", 1]], bare=bare, APP_SLOW_HOOK="1") for bare in (True, False)]
    for worker in workers:
        worker.wait_for("hook")
        worker.stop()
        assert "asyncio.exceptions.CancelledError" in worker.said()
    bare, guarded = workers
    assert (bare.count("opened"), bare.count("closed")) == (1, 0)
    assert (guarded.count("opened"), guarded.count("closed")) == (1, 1)
