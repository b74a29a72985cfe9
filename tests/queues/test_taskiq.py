"""taskiq: coroutines on a loop, plain functions in threads beside it, in processes of a manager."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import psycopg_pool
import pytest
from taskiq import InMemoryBroker, TaskiqEvents
from taskiq.kicker import AsyncKicker
from taskiq_redis import ListQueueBroker

import lifeguard
import lifeguard.taskiq
from lifeguard.testing import Postgres
from tests.queues.apps import MAX_SIZE
from tests.queues.worker import Worker, Workers

Job = tuple[Any, ...]

SELECTS: list[Job] = [("select", n) for n in range(10)] + [
    ("select_sync", n) for n in range(10, 20)
]
KEEPERS: list[Job] = [(name, how) for how in ("fails", "ok") for name in ("keep", "keep_sync")]


def taskiq(start: Workers, *options: str, processes: int = 1, **environ: Any) -> Worker:
    app = "tests.queues.apps.taskiq_app:broker"
    argv = ["-m", "taskiq", "worker", app, "--workers", str(processes), "--max-async-tasks", "4"]
    return start(*argv, *options, **environ)


def send(start: Workers, worker: Worker, jobs: list[Job], **labels: Any) -> None:
    """From outside, as a web process would."""

    async def kick() -> None:
        broker = ListQueueBroker(start.broker, queue_name=worker.name)
        await broker.startup()
        for name, *args in jobs:
            kicker: Any = AsyncKicker(task_name=name, broker=broker, labels=labels)
            await kicker.kiq(*args)
        await broker.shutdown()

    asyncio.run(kick())


def check_closed_where_opened(worker: Worker) -> None:
    """Each pool once per process, on that process's loop."""
    opened = sorted((e.pid, e["kind"], e["loop"]) for e in worker.events("opened"))
    closed = sorted((e.pid, e["kind"], e["loop"]) for e in worker.events("closed"))
    assert opened == closed
    assert len({(pid, kind) for pid, kind, _ in opened}) == len(opened)


def test_what_a_task_does_not_give_back_is_back_with_its_end(start: Workers) -> None:
    """Tasks that fail, run into their timeout, or just forget, on the loop and in threads: after
    two of them the pool is empty for good. Guarded, each task gets its connection."""
    bare = taskiq(start, bare=True, APP_KEPT=str(len(KEEPERS)))
    guarded = taskiq(start, APP_MODE="middleware")
    for worker in (bare, guarded):
        send(start, worker, KEEPERS)
    send(start, bare, [("select", 1), ("select_sync", 2)])
    send(start, guarded, [("keep", "hangs")] * 2, timeout=3)
    send(start, guarded, SELECTS)
    ends = guarded.wait_for("ended", 20)
    guarded.wait_for("ended keep", 6)
    assert sorted(event["n"] for event in ends) == list(range(20))
    assert sorted(event["n"] for event in guarded.events("answered")) == list(range(20))
    for answered in guarded.events("answered"):  # and the unit ended where the task ran
        (ended,) = [e for e in ends if e["n"] == answered["n"]]
        assert (ended["ident"], ended["loop"]) == (answered["ident"], answered["loop"])
    assert guarded.stop() == 0
    assert guarded.said().count("was not given back by the unit's end") == 6
    check_closed_where_opened(guarded)
    bare.wait_for_output("psycopg_pool.PoolTimeout: couldn't get a connection", 2)
    assert bare.count("answered") == 0


@pytest.mark.parametrize("end", ["SIGTERM", "Ctrl-C"])
def test_the_pools_close_with_each_process_on_its_loop(start: Workers, end: str) -> None:
    """Two processes, two pools of two each. However they end: closed once, in their own place."""
    if end == "SIGTERM":
        more: dict[str, Any] = {"options": ["--max-tasks-per-child", "10"]}
    else:  # a close that takes longer than taskiq allows goes on behind a shield
        more = {"options": ["--shutdown-timeout", "0.1"], "APP_SLOW_CLOSE": "0.5"}
    worker = taskiq(start, *more.pop("options"), processes=2, APP_MODE="middleware", **more)
    send(start, worker, SELECTS)
    worker.wait_for("answered", 20)
    assert worker.count("connected") <= len(worker.pids("opened")) * 2 * MAX_SIZE
    if end == "SIGTERM":
        done = worker.log.per_pid("answered")
        anew = [pid for pid in done if done[pid] == 10]  # a process ends then, and another begins
        assert anew
        worker.wait_for("closed", 2 * len(anew))
        worker.wait_for("opened", 2 * (2 + len(anew)))
        worker.send(signal.SIGTERM)
    else:
        os.killpg(worker.pid, signal.SIGINT)
    assert worker.wait() == 0
    check_closed_where_opened(worker)


def test_the_decorator_alone_opens_with_the_first_task(start: Workers) -> None:
    """It is enough where all tasks are async, or all resources sync. A plain function cannot open
    what is async, and says so."""
    worker = taskiq(start)
    send(start, worker, [("select_sync", 1)])
    worker.wait_for_output("TypeError")
    assert "async with lifeguard.worker()" in worker.said()
    send(start, worker, [("select", 2)])
    worker.wait_for("answered", 1)
    send(start, worker, [("select_sync", 3)])
    worker.wait_for("answered", 2)
    assert worker.stop() == 0
    assert [event["n"] for event in worker.events("answered")] == [2, 3]
    assert worker.count("closed") >= 2


def test_tasks_in_processes_have_pools_of_their_own(start: Workers) -> None:
    """--use-process-pool: the processes are forked from one that has its pool open."""
    options = ["--use-process-pool", "--max-process-pool-processes", "2"]
    worker = taskiq(start, *options, APP_MODE="middleware", APP_POOLS="sync")
    send(start, worker, [("select_sync", n) for n in range(20)])
    worker.wait_for("answered", 20)
    assert worker.stop() == 0
    assert sorted(event["n"] for event in worker.events("ended")) == list(range(20))
    assert worker.pids("answered") < worker.pids("opened")
    assert worker.pids("opened") == worker.pids("closed")
    assert worker.count("opened") == worker.count("closed") == len(worker.pids("opened"))


def test_a_broker_in_memory_is_a_worker_too(pg: Postgres, dsn: str, appname: str) -> None:
    """For tests: startup() opens what the middleware was given, shutdown() closes it."""
    guard = lifeguard.Lifeguard()
    pool = psycopg_pool.AsyncConnectionPool(dsn, open=False, min_size=1, max_size=2)
    broker = InMemoryBroker(await_inplace=True)
    asked: list[Any] = []

    @broker.on_event(TaskiqEvents.WORKER_STARTUP)
    async def warm_up(_: object) -> None:  # it was there before, and finds the pool open
        async with pool.connection() as conn:
            asked.append(await (await conn.execute("SELECT 7")).fetchone())

    lifeguard.taskiq.install(broker, resources=[pool], guard=guard)
    ended: list[int] = []

    @broker.task("one")
    async def one(n: int) -> int:
        guard.callback(ended.append, n)
        async with pool.connection() as conn:
            row = await (await conn.execute("SELECT %s::int", [n])).fetchone()
        assert row is not None
        return int(row[0])

    @broker.task("two")
    @guard.task
    def two(n: int) -> int:
        guard.callback(ended.append, n)
        return n

    with pytest.raises(TypeError, match="directly above the function"):
        guard.task(one)  # the object that sends the task

    async def main() -> list[Any]:
        await broker.startup()
        assert pg.count(prefix=appname) == 1
        assert asked == [(7,)]
        late = broker.register_task(lambda n: guard.callback(ended.append, n), "late")
        tasks = [await one.kiq(1), await two.kiq(2), await late.kiq(3)]
        results = [await task.wait_result() for task in tasks]
        await broker.shutdown()
        assert pool.closed
        return [result.return_value for result in results]

    assert asyncio.run(main()) == [1, 2, None]
    assert ended == [1, 2, 3]
