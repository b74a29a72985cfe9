"""Tasks that ask the database in threads and loops of their own, on a real worker.

What such a thread opens, nobody closes: Celery's fixup knows the task's own thread only, and what
the thread leaves is part of a cycle. So four children fill a PostgreSQL of 100 connections, and a
native pool of four is empty after the first tasks. The tasks (apps/inner.py) run with the garbage
collector off, which makes the bare side the same in every run; with it on, 95 connections were
counted where there are 99 here.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.celery.worker import CeleryWorker, Workers

pytestmark = [pytest.mark.celery, pytest.mark.timeout(400)]

TASKS = 40
"""Of which each has up to three connections: more than PostgreSQL has."""
CHILDREN = 4
INNER = 3
POOL_SIZE = 4

BODIES = ["run", "to_sync", "not_sensitive", "to_thread", "executor", "global_executor"]
NEW_THREADS = ["not_sensitive", "to_thread", "executor"]
"""Their threads end with the task."""


@dataclass
class Seen:
    """What became of the tasks of one body, and of the server's connections."""

    right: int
    errors: set[str]
    opened: int
    most: int
    """The most connections that there were, each counted when it had just been opened."""
    left: int


class Inner:
    """One worker. What each body does is counted apart."""

    def __init__(self, worker: CeleryWorker) -> None:
        self.worker = worker
        self.numbers = itertools.count(1)

    def run(self, body: str, alias: str, tasks: int = TASKS, *, left: int | None = None) -> Seen:
        """*left* is how many connections to wait for, afterwards."""
        worker = self.worker
        opened, seen = worker.opened()[alias], worker.log.count("there")
        sent = worker.send_all("inner", [(body, alias, number) for number in range(tasks)])
        answers = worker.gather(sent, within=120)
        inner = 1 if body in ("run", "to_sync") else INNER
        if left is not None:
            worker.pg.wait_count(left, prefix=f"{worker.name}.{alias}", timeout=40)
        return Seen(
            right=sum(answer.result == [n] * inner for n, answer in enumerate(answers)),
            errors={str(answer.result) for answer in answers if not answer.ok},
            opened=worker.opened()[alias] - opened,
            most=max((event["there"] for event in worker.log.read("there")[seen:]), default=0),
            left=worker.idle(alias),
        )

    def settled(self, alias: str) -> int:
        """How many connections there are: a backend leaves a moment after its client."""
        worker, count = self.worker, -1
        while count != (count := worker.idle(alias)):
            worker.pg.wait_count(0, prefix=f"{worker.name}.{alias}", timeout=1)
        return count

    @contextlib.contextmanager
    def swept(self) -> Iterator[None]:
        """Afterwards each child throws away what its tasks have left behind."""
        try:
            yield
        finally:
            worker, gate = self.worker, f"sweep-{next(self.numbers)}"
            sent = worker.send_all("collect", [(gate,)] * CHILDREN)
            worker.wait_until(
                lambda: sum(e["gate"] == gate for e in worker.log.read("collected")) == CHILDREN
            )
            worker.open_gate(gate)
            assert all(answer.ok for answer in worker.gather(sent))


@pytest.fixture(scope="module", params=["prefork", "threads"])
def pool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bare(start_shared: Workers, pool: str) -> Iterator[Inner]:
    worker = start_shared("inner", pool=pool, bare=True, env={"APP_TIMEOUT": "0.2"})
    yield Inner(worker)
    worker.kill()


@pytest.fixture(scope="module")
def guarded(start_shared: Workers, pool: str) -> Iterator[Inner]:
    worker = start_shared("inner", pool=pool, env={"APP_TIMEOUT": "40"})
    yield Inner(worker)
    worker.kill()


@pytest.fixture(scope="module")
def every_executor(start_shared: Workers, pool: str) -> Iterator[Inner]:
    """``LIFEGUARD = {"EXECUTORS": True}``: what code of others submits is a unit as well."""
    env = {"APP_TIMEOUT": "40", "APP_EXECUTORS": "1"}
    worker = start_shared("inner", pool=pool, env=env)
    yield Inner(worker)
    worker.kill()


# -- bare -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", NEW_THREADS)
def test_four_children_exhaust_postgresql(bare: Inner, body: str) -> None:
    """Each inner thread leaves a connection behind, until the server has no more of them."""
    with bare.swept():
        seen = bare.run(body, "default")
        assert seen.most >= 95 and seen.left >= 95, seen
        assert any("connection failed" in error for error in seen.errors), seen
        assert seen.right < TASKS


@pytest.mark.parametrize("body", NEW_THREADS)
def test_inner_threads_empty_the_native_pool(bare: Inner, pool: str, body: str) -> None:
    """What they have checked out is never given back. On the threads pool all tasks share one
    pool of four, and all but the first fail; in each child it is made anew after each task."""
    with bare.swept():
        seen = bare.run(body, "pooled", tasks=12 if pool == "threads" else TASKS)
        assert any("couldn't get a connection" in error for error in seen.errors), seen
        if pool == "threads":
            assert seen.right <= 2
        else:
            # On a busy machine fewer of them, as the pool's patience of 0.2 s is over sooner.
            assert seen.most > 2 * POOL_SIZE * CHILDREN and seen.right < TASKS, seen


def test_threads_that_live_on_keep_their_connections(bare: Inner) -> None:
    """asgiref's one thread, which ``asyncio.run(sync_to_async())`` comes to, and an executor of
    the module's. They are bounded, and stay for good."""
    with bare.swept():
        for body, in_each_child in (("run", 1), ("global_executor", INNER)):
            left = bare.settled("default")
            seen = bare.run(body, "default")
            assert seen.left == left + seen.opened
            assert 1 <= seen.opened <= CHILDREN * in_each_child


def test_the_native_pool_is_made_anew_for_each_task(bare: Inner, pool: str) -> None:
    """Celery's fixup closes it with each task of a child, and psycopg_pool makes as many
    connections as it should have at least, and one more for the task."""
    if pool == "prefork":
        assert bare.run("to_sync", "pooled").opened > TASKS


# -- guarded --------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", BODIES)
def test_inner_threads_leave_nothing(guarded: Inner, body: str) -> None:
    """The same tasks: all answers, never more connections than threads, none of them left.

    But for an executor that the module keeps: its threads live on, with a connection each. That
    takes ``LIFEGUARD["EXECUTORS"]``, below.
    """
    keeps = body == "global_executor"
    seen = guarded.run(body, "default", left=None if keeps else 0)
    assert (seen.right, seen.errors) == (TASKS, set())
    assert seen.left == (seen.opened if keeps else 0)
    # A backend leaves a moment after its client: there may be one such for each thread.
    assert seen.most <= CHILDREN * INNER * (1 if keeps else 2)


@pytest.mark.parametrize("body", BODIES)
def test_the_native_pool_stays_open_and_keeps_its_size(
    guarded: Inner, every_executor: Inner, pool: str, body: str
) -> None:
    """It is opened once in each child, for all tasks there, and never has more connections than
    it was given.

    Where twelve inner threads share one pool of four, their jobs are made units
    (``EXECUTORS``): else an idle thread keeps its connection until it ends, and all the others
    may wait for those that the idle ones keep.
    """
    seen = (every_executor if pool == "threads" else guarded).run(body, "pooled")
    assert (seen.right, seen.errors) == (TASKS, set())
    assert seen.most <= POOL_SIZE * (CHILDREN if pool == "prefork" else 1)
    assert seen.left <= POOL_SIZE * (CHILDREN if pool == "prefork" else 1)
    assert seen.opened <= POOL_SIZE * (CHILDREN if pool == "prefork" else 1)


def test_an_executor_of_the_module_leaves_nothing_where_that_is_asked_for(
    every_executor: Inner,
) -> None:
    """``LIFEGUARD = {"EXECUTORS": True}``: each of its jobs is a unit."""
    seen = every_executor.run("global_executor", "default", left=0)
    assert (seen.right, seen.errors, seen.left) == (TASKS, set(), 0)
    assert seen.most <= 2 * CHILDREN * INNER  # with those that are about to leave


def test_everything_is_closed_in_order_at_the_end(
    guarded: Inner, every_executor: Inner, pool: str
) -> None:
    """At the worker's end PostgreSQL is told by every connection, pools and idle threads
    included."""
    for inner in (guarded, every_executor):
        for alias in ("default", "pooled"):
            assert inner.run("global_executor", alias, tasks=12).right == 12
        assert inner.worker.stop() == 0
        assert inner.worker.left() == 0
        assert inner.worker.unclean() == []
