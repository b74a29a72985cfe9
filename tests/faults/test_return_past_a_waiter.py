"""A return that is cancelled while it hands the connection to somebody who waits.

psycopg_pool offers a returned connection to the first that waits, under that one's own lock. Who
waits and is cancelled holds that lock for a moment: a level-cancelled return that meets it there
is cut off with the connection in its hands, in nobody's pool.
"""

from __future__ import annotations

import asyncio

import anyio
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from psycopg_pool.pool_async import WaitingClient

import lifeguard
from lifeguard.testing import Postgres


def return_past_a_busy_waiter(dsn: str, *, guarded: bool) -> bool:
    """Whether the pool, of one connection, still has it afterwards."""
    guard = lifeguard.Lifeguard()
    pool = AsyncConnectionPool(dsn, open=False, min_size=1, max_size=1, timeout=0.5)

    async def request() -> None:
        with anyio.CancelScope() as scope:
            conn = await pool.getconn()
            gone = WaitingClient[object]()
            gone.error = asyncio.CancelledError()  # it takes nothing any more
            await gone._cond.acquire()
            asyncio.get_running_loop().call_later(0.05, gone._cond.release)
            pool._waiting.append(gone)  # type: ignore[arg-type]
            scope.cancel()
            await pool.putconn(conn)

    async def main() -> bool:
        if guarded:
            async with guard.worker(resources=[pool]):
                await guard.task(request)()
                return await still_there()
        async with pool:
            await request()
            return await still_there()

    async def still_there() -> bool:
        try:
            async with pool.connection():
                return True
        except PoolTimeout:
            return False

    return asyncio.run(main())


def test_bare_the_connection_is_lost(pg: Postgres, dsn: str) -> None:
    assert not return_past_a_busy_waiter(dsn, guarded=False)


def test_guarded_it_is_back(pg: Postgres, dsn: str) -> None:
    assert return_past_a_busy_waiter(dsn, guarded=True)
