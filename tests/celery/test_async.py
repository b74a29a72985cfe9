"""``async def`` tasks on a real worker: one loop per process, where the async pool stays open.

Celery calls a task and stores what it returns; a coroutine it would drop. ``lifeguard.celery.task``
runs it on an asyncio loop in a thread of its own, and the task's thread waits. So whatever ends the
task, a time limit, a revoke or the worker's end, has to reach the coroutine, and wait for it: each
test of an end looks for the last line of a ``finally`` that awaits.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.celery.worker import Answer, CeleryWorker, Workers

pytestmark = [pytest.mark.celery, pytest.mark.timeout(400)]

POOLS = ["prefork", "threads", "solo"]
CONCURRENCY = {"prefork": 2, "threads": 4, "solo": 1}
MAX_SIZE = 4


@pytest.fixture(scope="module", params=POOLS)
def worker(request: pytest.FixtureRequest, start_shared: Workers) -> Iterator[CeleryWorker]:
    pool = str(request.param)
    worker = start_shared("async_tasks", pool=pool, concurrency=CONCURRENCY[pool])
    yield worker
    worker.kill()


@pytest.fixture(scope="module")
def children(start_shared: Workers) -> Iterator[CeleryWorker]:
    """A prefork worker whose children come and go."""
    worker = start_shared("async_tasks", concurrency=2)
    yield worker
    worker.kill()


def processes(worker: CeleryWorker) -> int:
    return 2 if worker.pool == "prefork" else 1


def events(worker: CeleryWorker, event: str, **extra: Any) -> list[Any]:
    """The events of this name that have these values."""
    found = worker.log.read(event)
    return [each for each in found if extra.items() <= each.extra.items()]


def wait_for(worker: CeleryWorker, event: str, n: int = 1, **extra: Any) -> list[Any]:
    worker.wait_until(lambda: len(events(worker, event, **extra)) >= n, f"{event} {extra}")
    return events(worker, event, **extra)


def stored(result: Any) -> dict[str, Any]:
    """What the result backend has of it now."""
    meta: dict[str, Any] = result.backend.get_task_meta(result.id, cache=False)
    return meta


# -- what is open, and where ----------------------------------------------------------------------


def test_sync_and_async_tasks_share_one_worker(worker: CeleryWorker) -> None:
    """Each task has its own row, and each process opened each pool once, for all of them."""
    numbers = range(60)
    tasks = ["ask" if number % 2 else "ask_sync" for number in numbers]
    answers = worker.gather([worker.send(tasks[n], n) for n in numbers])
    assert [answer.result[0] for answer in answers] == list(numbers)
    pids = {answer.result[2] for answer in answers}
    assert len(pids) <= processes(worker)
    for what in ("async", "sync"):
        opened = [event.pid for event in events(worker, "opened", what=what)]
        assert len(opened) == len(set(opened)) and set(opened) >= pids
        assert worker.idle(what) <= MAX_SIZE * processes(worker)
        assert worker.opened()[what] <= MAX_SIZE * processes(worker)


def test_all_tasks_of_a_process_run_on_one_plain_asyncio_loop(worker: CeleryWorker) -> None:
    answers = worker.gather(worker.send_all("where", [()] * 12))
    loops = {(answer.result["pid"], answer.result["loop"]) for answer in answers}
    assert len(loops) == len({pid for pid, _ in loops}) <= processes(worker)
    assert {answer.result["kind"] for answer in answers} == {"asyncio.unix_events"}


def test_tasks_run_side_by_side(worker: CeleryWorker) -> None:
    """As many as the pool takes at once: on the threads pool, four on one loop."""
    size = CONCURRENCY[worker.pool]
    answers = worker.gather(worker.send_all("meet", [("all", size)] * size))
    assert len({answer.result for answer in answers if answer.ok}) == processes(worker), answers


# -- what Celery gives a task ---------------------------------------------------------------------


def test_a_bound_task_sees_its_own_request(worker: CeleryWorker) -> None:
    sent = [worker.send("request", n, kwargs={"key": n}) for n in range(8)]
    for n, (result, answer) in enumerate(zip(sent, worker.gather(sent), strict=True)):
        assert answer.result == {
            "id": result.id,
            "name": "request",
            "args": [n],
            "kwargs": {"key": n},
            "retries": 0,
            "directly": False,
            "got": [[n], {"key": n}],
        }


def test_a_task_sees_its_own_request_after_others_have_run_on_its_loop(
    worker: CeleryWorker,
) -> None:
    size = CONCURRENCY[worker.pool]
    sent = worker.send_all("requests", [("requests",)] * size)
    wait_for(worker, "waiting", size, gate="requests")
    worker.open_gate("requests")
    for result, answer in zip(sent, worker.gather(sent), strict=True):
        assert answer.result == [result.id, result.id]


def test_a_task_tells_of_its_progress(worker: CeleryWorker) -> None:
    result = worker.send("progress", "progress")
    wait_for(worker, "waiting", gate="progress")
    worker.wait_until(
        lambda: result.backend.get_task_meta(result.id, cache=False)["status"] == "HALF"
    )
    assert result.backend.get_task_meta(result.id, cache=False)["result"] == {"done": 50}
    worker.open_gate("progress")
    assert worker.gather([result])[0] == Answer("SUCCESS", "all")


def test_context_variables_come_with_a_task_and_end_with_it(worker: CeleryWorker) -> None:
    """What a signal has set before the task is there in its coroutine, and in tasks of asyncio's
    that it makes. What one task sets, the next does not see."""
    for n in range(4):
        worker.send("leaves_context", f"{n}")
        name = f"context {n}"
        assert worker.run("context", name).result == [f"prerun of {name}"] * 2


@pytest.mark.parametrize(
    ("what", "error"),
    [("value", "on purpose"), ("sql", "division by zero"), ("cancel", "by the task itself")],
)
def test_an_exception_is_the_tasks_failure(worker: CeleryWorker, what: str, error: str) -> None:
    answer = worker.run("fail", what)
    assert (answer.state, str(answer.result)) == ("FAILURE", error)
    assert len(events(worker, "callback", what=what)) == 1


@pytest.mark.parametrize("what", ["ignore", "reject"])
def test_ignore_and_reject_mean_what_they_mean(worker: CeleryWorker, what: str) -> None:
    plain, result = worker.send("plain", what), worker.send("fail", what)
    assert len(wait_for(worker, "callback", what=what)) == 1
    status = {"ignore": "STARTED", "reject": "FAILURE"}[what]  # which is all that is stored of it
    for each in (plain, result):
        worker.wait_until(lambda: stored(each)["status"] == status)


def test_a_task_retries_itself(worker: CeleryWorker) -> None:
    """``raise self.retry()``: each execution is a unit.

    The result is not looked at: Celery may store the state of an earlier execution, RETRY, when
    the next one has already succeeded.
    """
    result = worker.send("retry", 2)
    assert len(wait_for(worker, "callback", 3, what="retry", id=result.id)) == 3
    worker.wait_until(lambda: len(events(worker, "retried", id=result.id, retries=2)) == 1)
    result = worker.send("retry", 99)
    assert len(wait_for(worker, "callback", 4, what="retry", id=result.id)) == 4
    worker.wait_until(lambda: "ValueError('too often')" in worker.said())


def test_a_task_is_retried_for_its_errors(worker: CeleryWorker) -> None:
    """``autoretry_for``, which looks at what the task raises."""
    before = len(events(worker, "callback", what="autoretry"))
    worker.send("autoretry", "again")
    assert len(wait_for(worker, "callback", before + 3, what="autoretry")) == before + 3
    assert len(events(worker, "try", name="again")) == 3


# -- what a task leaves ---------------------------------------------------------------------------


def test_what_a_task_starts_may_outlive_it(worker: CeleryWorker) -> None:
    """A task of asyncio's that goes on when the Celery task is over can use the pool as before."""
    before = len(events(worker, "went on"))
    assert worker.run("outlived", "later").result == "over"
    assert len(events(worker, "went on")) == before
    worker.open_gate("later")
    assert [event["number"] for event in wait_for(worker, "went on", before + 1)][-1] == 7


def test_a_connection_that_a_task_keeps_is_taken_back_and_reported(worker: CeleryWorker) -> None:
    """More of them than the pool has: each is back at its task's end, and the log says whose."""
    answers = worker.gather(worker.send_all("leak", [()] * 3 * MAX_SIZE))
    assert all(answer.ok for answer in answers), answers
    assert worker.run("ask", 5).result[0] == 5
    assert worker.idle("async") <= MAX_SIZE * processes(worker)
    worker.wait_until(lambda: "async_tasks.py:" in worker.said() and "leak" in worker.said())


def test_lost_connections_are_replaced(worker: CeleryWorker) -> None:
    """The server ends all of them: a pool whose loop is alive makes new ones."""
    assert worker.run("ask", 1).ok
    with worker.pg.connect() as conn:
        ended = conn.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE starts_with(application_name, %s)",
            [f"{worker.name}.async"],
        ).fetchone()
    assert ended is not None and ended[0] >= 1
    failed = 0
    while True:  # those that were lost may be noticed by a task each
        answers = worker.gather(worker.send_all("ask", [(n,) for n in range(20)]))
        assert [answer.result[0] for answer in answers if answer.ok] == [
            n for n in range(20) if answers[n].ok
        ]
        if all(answer.ok for answer in answers):
            break
        failed += sum(not answer.ok for answer in answers)
        assert failed <= ended[0], answers


# -- how a task ends ------------------------------------------------------------------------------


def test_a_soft_time_limit_cancels_the_coroutine_and_waits(children: CeleryWorker) -> None:
    """The query is cancelled, the ``finally`` runs to its end, and only then the task has failed.
    The child lives on."""
    result = children.send("wait", "limit", soft_time_limit=3)
    answer = children.gather([result])[0]
    assert (answer.state, type(answer.result).__name__) == ("FAILURE", "SoftTimeLimitExceeded")
    (query,) = events(children, "in the query", name="limit")
    (ended,) = events(children, "finally ends", name="limit")
    (callback,) = events(children, "callback", what="limit")
    assert ended["number"] == 5 and ended.pid == query.pid and ended.at < callback.at
    assert not is_active(children, query["backend"])
    assert query.pid in children.children()
    assert children.run("ask", 8).result[0] == 8


def test_a_coroutine_that_swallows_its_cancellation_is_waited_for(children: CeleryWorker) -> None:
    answer = children.run("swallows", "swallowed", soft_time_limit=3)
    assert (answer.state, type(answer.result).__name__) == ("FAILURE", "SoftTimeLimitExceeded")
    assert len(events(children, "cancelled", name="swallowed")) == 1
    assert len(events(children, "finally ends", name="swallowed")) == 1


@pytest.mark.parametrize("how", ["revoke", "SIGTERM to the child"])
def test_a_child_that_is_terminated_ends_its_coroutine_and_its_pools(
    children: CeleryWorker, how: str
) -> None:
    """``revoke(terminate=True)``, and a signal: the ``finally`` runs to its end, the child closes
    both pools, and the next one answers."""
    result = children.send("wait", how)
    (query,) = wait_for(children, "in the query", name=how)
    if how == "revoke":
        children.revoke(result)
    else:
        children.send_signal(signal.SIGTERM, query.pid)
    (ended,) = wait_for(children, "finally ends", name=how)
    assert ended["number"] == 5 and ended.pid == query.pid
    children.wait_until(
        lambda: sum(event.pid == query.pid for event in children.log.read("closed")) == 2
    )
    assert len(events(children, "callback", what=how)) == 1
    assert not is_active(children, query["backend"])
    assert children.run("ask", 9).result[0] == 9
    assert children.unclean() == []


def is_active(worker: CeleryWorker, backend: int) -> bool:
    with worker.pg.connect() as conn:
        row = conn.execute(
            "SELECT state FROM pg_stat_activity WHERE pid = %s AND state = 'active'", [backend]
        ).fetchone()
    return row is not None


# -- how a worker ends ----------------------------------------------------------------------------


@pytest.mark.parametrize("pool", POOLS)
def test_a_warm_shutdown_waits_for_the_coroutine(start: Workers, pool: str) -> None:
    """SIGTERM: the task goes on to its end, with its pool, and everything is closed once."""
    worker = start("async_tasks", pool=pool, concurrency=2)
    result = worker.send("works_on", "warm", "warm")
    wait_for(worker, "works on", name="warm")
    worker.send_signal(signal.SIGTERM)
    worker.wait_until(lambda: "Warm shutdown" in worker.said(), "the warm shutdown")
    worker.open_gate("warm")
    assert worker.wait() == 0
    assert worker.gather([result]) == [Answer("SUCCESS", "warm")]
    (worked,) = events(worker, "worked", name="warm")
    assert worked["number"] == 3
    all_is_closed(worker, after=worked.at)


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_cold_shutdown_cancels_the_coroutine_and_waits(start: Workers, pool: str) -> None:
    """SIGQUIT in the middle of a query: the ``finally`` runs to its end before the pool closes,
    and PostgreSQL does not go on with the query."""
    worker = start("async_tasks", pool=pool, concurrency=2)
    worker.send("wait", "cold")
    (query,) = wait_for(worker, "in the query", name="cold")
    worker.send_signal(signal.SIGQUIT)
    worker.wait()
    (ended,) = wait_for(worker, "finally ends", name="cold")
    assert ended["number"] == 5 and ended.pid == query.pid
    assert len(events(worker, "callback", what="cold")) == 1
    all_is_closed(worker, after=ended.at)


def test_a_cold_shutdown_of_the_threads_pool_waits_for_the_coroutine(start: Workers) -> None:
    """Celery cannot end a thread: it waits for its job, whatever that is, and so do the pools."""
    worker = start("async_tasks", pool="threads", concurrency=2)
    worker.send("works_on", "cold", "cold")
    wait_for(worker, "works on", name="cold")
    worker.send_signal(signal.SIGQUIT)
    worker.wait_until(lambda: "Cold shutdown" in worker.said() or "kill_job" in worker.said())
    worker.open_gate("cold")
    worker.wait()
    (worked,) = events(worker, "worked", name="cold")
    assert worked["number"] == 3
    all_is_closed(worker, after=worked.at)


def all_is_closed(worker: CeleryWorker, *, after: float) -> None:
    """Each pool that was opened is closed, once, in its process, and PostgreSQL has been told."""
    for what in ("async", "sync"):
        opened = sorted(event.pid for event in events(worker, "opened", what=what))
        closed = sorted(event.pid for event in events(worker, "closed", what=what))
        assert opened == closed and len(opened) == len(set(opened)) >= 1
    assert min(event.at for event in events(worker, "closed", what="async")) > after
    assert worker.left() == 0
    assert worker.unclean() == []


# -- pools without threads ------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_greenlets_run_sync_tasks_and_refuse_async_ones(start: Workers, pool: str) -> None:
    """They have replaced the threads that a loop needs: the task fails with a word, at once, and
    the sync tasks of the same worker go on."""
    worker = start("green", pool=pool)
    refused = worker.run("ask_async", 1)
    assert refused.state == "FAILURE"
    assert str(refused.result).startswith("tests.celery.apps.green.ask_async (")
    assert f"is async and cannot run under {pool}" in str(refused.result)
    assert "--pool threads or prefork" in str(refused.result)
    answers = worker.gather(worker.send_all("ask", [(n,) for n in range(40)]))
    assert [answer.result for answer in answers] == list(range(40))
    assert worker.log.count("opened") == 1 and worker.log.count("ran") == 0
    worker.stop()
    assert worker.log.count("closed") == 1
    assert worker.left() == 0 and worker.unclean() == []
