"""The same on every supported version of Celery: a look at all of it, with each of them.

The other files of this folder ask everything, of the version that this environment has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import celery
import pytest

from tests.celery.worker import CeleryWorker, Workers

pytestmark = [pytest.mark.celery, pytest.mark.timeout(600)]

VERSIONS = {"celery54": "5.4.", "celery55": "5.5.", "celery56": "5.6.", None: celery.__version__}
TASKS = 24
MAX_SIZE = 4


@pytest.mark.parametrize(
    ("version", "pool"), [*((version, "prefork") for version in VERSIONS), ("celery54", "threads")]
)
def test_a_version_of_celery(start: Workers, version: str | None, pool: str) -> None:
    """Sync, async and Django's tasks, nested calls, retries, time limits and revokes, canvas, and
    the end of the worker: all answers, each pool opened and closed once in each process, nothing
    left."""
    worker = start("versions", pool=pool, concurrency=2, versions=version)
    processes = 2 if pool == "prefork" else 1
    # Celery 5.4 and 5.5 look for what a thread has done every half second, with lifeguard or not.
    tasks = TASKS if pool == "prefork" else 4
    assert worker.run("version").result.startswith(VERSIONS[version])

    for task in ("ask", "ask_sync"):
        answers = worker.gather(worker.send_all(task, [(n,) for n in range(tasks)]))
        assert [answer.result[0] for answer in answers] == list(range(tasks))
    for alias in ("default", "kept", "pooled"):
        answers = worker.gather(worker.send_all("orm", [(alias, n) for n in range(tasks)]))
        assert [answer.result[0] for answer in answers] == list(range(tasks))
    assert worker.pg.wait_count(0, prefix=f"{worker.name}.default", timeout=40) == 0
    assert worker.opened()["kept"] <= 2
    assert worker.opened()["pooled"] <= processes * MAX_SIZE
    assert worker.run("nested", "default").result is True

    request = worker.send("request", 1, kwargs={"key": 2})
    assert worker.gather([request])[0].result["id"] == request.id
    worker.send("retry", 2)
    worker.wait_until(lambda: worker.log.count("retried") == 1, "the second retry")
    worker.send("autoretry", "again")
    worker.wait_until(lambda: worker.log.count("try") == 3, "the third try")
    assert worker.gather([canvas(worker)])[0].result[0] == 1
    assert str(worker.run("fail", "value").result) == "on purpose"
    if pool == "prefork":
        for how in (limit, revoke):
            end(worker, how)

    assert worker.stop() == 0
    for event in ("opened", "closed"):
        for what in ("async", "sync"):
            pids = [e.pid for e in worker.log.read(event) if e["what"] == what]
            assert 1 <= len(pids) == len(set(pids)) <= processes + 1
    assert worker.log.count("opened") == worker.log.count("closed")
    assert worker.left() == 0
    assert worker.unclean() == []


def canvas(worker: CeleryWorker) -> Any:
    """A chain of an async task and one that takes what it returns."""
    signature = worker.client.signature
    first = signature("request", kwargs={"key": 1}, immutable=True)
    return (first | signature("ask", args=(1,), immutable=True)).apply_async()


def limit(worker: CeleryWorker, name: str) -> None:
    answer = worker.run("wait", name, soft_time_limit=3)
    assert type(answer.result).__name__ == "SoftTimeLimitExceeded"


def revoke(worker: CeleryWorker, name: str) -> None:
    result = worker.send("wait", name)
    worker.wait_until(lambda: any(e["name"] == name for e in worker.log.read("in the query")))
    worker.revoke(result)


def end(worker: CeleryWorker, how: Callable[[CeleryWorker, str], None]) -> None:
    """A task that is ended in the middle of a query: its ``finally``, which awaits, does, too."""
    how(worker, how.__name__)
    worker.wait_until(
        lambda: any(e["name"] == how.__name__ for e in worker.log.read("finally ends"))
    )
    assert worker.run("ask", 5).result[0] == 5
