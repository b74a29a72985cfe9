"""Arfey/django-async-backend#4: with a pool of four, the fifth request hangs.

Each request keeps its connection in a context variable, and nothing tells it that the request
is over. The project's backend is for Django on psycopg_pool; the pool and the pattern are here,
Django is not.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

from psycopg_pool import AsyncConnectionPool

from tests.incidents.driving import App, get, leaks_are_reported, respond, running

SIZE = 4


def make_app(pool: AsyncConnectionPool[Any]) -> App:
    mine: ContextVar[Any] = ContextVar("connection")

    async def cursor() -> Any:
        """The connection of this request, borrowed when it is needed first."""
        try:
            conn = mine.get()
        except LookupError:
            conn = await pool.getconn()
            mine.set(conn)
        return conn.cursor()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        for _ in range(2):
            await (await cursor()).execute("SELECT 1")
        await respond(send, "ok")

    return app


def test_incident_B03(dsn: str) -> None:
    """Bare, the fifth of five requests, one after another, gets no connection.

    Guarded, the end of each request is noticed: all five answer, and each is told to give back.
    """
    assert asyncio.run(serve(dsn, guarded=False, timeout=2.5)) == ["ok"] * SIZE + ["PoolTimeout"]

    with leaks_are_reported() as reports:
        answers = asyncio.run(serve(dsn, guarded=True, timeout=40))
    assert answers == ["ok"] * (SIZE + 1)
    assert len(reports) == SIZE + 1


async def serve(dsn: str, *, guarded: bool, timeout: float) -> list[str]:
    pool = AsyncConnectionPool(dsn, min_size=2, max_size=SIZE, timeout=timeout, open=False)
    async with running(make_app(pool), pool, guarded=guarded) as app:
        # A server runs each request in a task, that is a context, of its own.
        return [await asyncio.create_task(get(app)) for _ in range(SIZE + 1)]
