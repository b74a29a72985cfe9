"""dimagi/open-chat-studio#2553: every thread of an executor opens a connection, and keeps it.

An agent framework runs its steps in thread pools. Each new thread got a connection of its own
from a thread-local, as Django's do, and nobody gave it back when the thread was done; the project
had to replace the framework's executor. Django is not here, the thread-local is.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

from psycopg_pool import ConnectionPool

import lifeguard
from tests.incidents.driving import leaks_are_reported, serves_all_threads

SIZE = 4


def make_step(pool: ConnectionPool[Any]) -> Callable[[int], int]:
    local = threading.local()

    def step(number: int) -> int:
        conn = getattr(local, "conn", None)
        if conn is None or conn.closed:
            conn = local.conn = pool.getconn()
        row = conn.execute("SELECT %s + 1", [number]).fetchone()
        conn.commit()
        result: int = row[0]
        return result

    return step


def test_incident_H01(dsn: str) -> None:
    """Bare, the steps' threads are gone and the pool stays empty.

    Guarded, with lifeguard's executor in place of the standard one, the pool is whole when the
    steps are done.
    """
    assert not conversation(dsn, guarded=False, timeout=0.5)
    with leaks_are_reported():
        assert conversation(dsn, guarded=True, timeout=15)


def conversation(dsn: str, *, guarded: bool, timeout: float) -> bool:
    pool = ConnectionPool(dsn, min_size=1, max_size=SIZE, open=False)
    step = make_step(pool)
    executor: concurrent.futures.ThreadPoolExecutor
    if guarded:
        guard = lifeguard.Lifeguard()
        context: Any = guard.worker(resources=[pool])
        executor = lifeguard.ThreadPoolExecutor(SIZE, guard=guard)
    else:
        context = pool
        executor = concurrent.futures.ThreadPoolExecutor(SIZE)
    with context:
        barrier = threading.Barrier(SIZE)  # each thread gets a step

        def first_step(number: int) -> int:
            barrier.wait(timeout=15)
            return step(number)

        with executor:
            assert list(executor.map(first_step, range(SIZE))) == [1, 2, 3, 4]
            assert list(executor.map(step, range(SIZE))) == [1, 2, 3, 4]
        return serves_all_threads(pool, timeout)
