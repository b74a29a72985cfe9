"""Arfey/django-async-backend#28: an async pool hangs after enough requests were cancelled.

Under load, with clients that leave, the pool ran out although every borrower gave back. There it
was waiters that piled up; here it is the give-back: it waits for a lock of the pool (a pool
without idle connections holds that while it connects), is cancelled, and the place is lost.
"""

from __future__ import annotations

import asyncio
from typing import Any

from psycopg_pool import AsyncNullConnectionPool

from tests.incidents.driving import Exchange, get, running, serves_all


class Shop:
    """An app that borrows as it should, and a pool whose next connect can be held up."""

    def __init__(self, dsn: str) -> None:
        self.pool = AsyncNullConnectionPool(dsn, max_size=2, open=False, configure=self.configure)
        self.connecting = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def configure(self, conn: Any) -> None:
        self.connecting.set()
        await self.go_on.wait()

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        async with self.pool.connection() as conn:
            await conn.execute("SELECT 1")
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await receive()
            if scope["path"] == "/wait":
                await receive()
        await send({"type": "http.response.body", "body": b"ok"})


def test_incident_D14(dsn: str) -> None:
    """Bare, a request cancelled while it gives back costs a place for good. Guarded, none."""
    assert not asyncio.run(cancelled_give_back(dsn, guarded=False, timeout=0.5))
    assert asyncio.run(cancelled_give_back(dsn, guarded=True, timeout=40))


async def cancelled_give_back(dsn: str, *, guarded: bool, timeout: float) -> bool:
    shop = Shop(dsn)
    async with running(shop.app, shop.pool, guarded=guarded) as app:
        first = Exchange("/wait")
        task = asyncio.create_task(first.run(app))
        await first.outgoing.get()  # it has borrowed
        shop.connecting.clear()
        shop.go_on.clear()
        other = asyncio.create_task(get(app))
        await shop.connecting.wait()  # and holds the lock of the pool
        first.incoming.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        async with asyncio.timeout(40):  # commit and reset take an answer each
            while not waiting_for(shop.pool):
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0)
        shop.go_on.set()
        await asyncio.wait([task])
        assert await other == "ok"
        return await serves_all(shop.pool, timeout)


def waiting_for(pool: AsyncNullConnectionPool[Any]) -> bool:
    """Whether somebody waits for the pool's lock. It has no name for that."""
    lock: Any = pool._lock
    return bool(lock._waiters)
