"""Units that a closing worker gives up on: what they hold is closed, and PostgreSQL hears of it.

Apart from the tests of pools, because it is the worker that takes back: the unit goes on, in a
thread or a task that nobody can stop.
"""

from __future__ import annotations

import asyncio
import threading
import warnings

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool, ConnectionPool

import lifeguard
from lifeguard.testing import Postgres


def test_thread_that_does_not_end(pg: Postgres, dsn: str, appname: str) -> None:
    """Its connection is closed with the pool. What it does with it then fails, and is no leak."""
    guard = lifeguard.Lifeguard(grace=0.5)
    pool = ConnectionPool(dsn, open=False, min_size=1, max_size=2)
    borrowed, closed = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with guard.unit(), pool.connection() as connection:
                connection.execute("SELECT 1")
                borrowed.set()
                closed.wait(10)
                connection.execute("SELECT 2")
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=work)
    with guard.worker(resources=[pool]):
        thread.start()
        assert borrowed.wait(10)
    assert pg.wait_count(0, application_name=appname) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        closed.set()
        thread.join(10)
    assert not thread.is_alive()
    [failure] = failures
    assert isinstance(failure, psycopg.OperationalError)
    assert "closed" in str(failure)


def test_task_that_does_not_end(pg: Postgres, dsn: str, appname: str) -> None:
    """The same on an event loop."""
    guard = lifeguard.Lifeguard(grace=0.5)

    async def main() -> None:
        pool = AsyncConnectionPool(dsn, open=False, min_size=1, max_size=2)
        borrowed, closed = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            async with guard.unit(), pool.connection() as connection:
                await connection.execute("SELECT 1")
                borrowed.set()
                await closed.wait()
                await connection.execute("SELECT 2")

        async with guard.worker(resources=[pool]):
            task = asyncio.create_task(work())
            await borrowed.wait()
        assert await asyncio.to_thread(pg.wait_count, 0, application_name=appname) == 0
        closed.set()
        with pytest.raises(psycopg.OperationalError, match="closed"):
            await task

    asyncio.run(main())
