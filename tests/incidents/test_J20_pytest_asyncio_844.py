"""pytest-dev/pytest-asyncio#844: "event loop is closed" at the second request of a test client.

A ``TestClient`` that is not entered runs each request in an event loop of its own, and no
lifespan. What the app opened in the first loop is of no use in the next; the advice is to mount
the database through the lifespan, and to enter the client.
"""

from __future__ import annotations

import asyncio
from typing import Any

from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import lifeguard
from tests.incidents.driving import get


def make_app(pool: AsyncConnectionPool[Any], *, opens: bool) -> Starlette:
    async def index(request: Request) -> Response:
        if opens:
            await pool.open(wait=True)
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
        return PlainTextResponse("ok")

    async def copy(request: Request) -> Response:
        async with pool.connection() as source, pool.connection() as target:
            await source.execute("SELECT 1")
            await target.execute("SELECT 1")
        return PlainTextResponse("ok")

    return Starlette(routes=[Route("/", index), Route("/copy", copy)])


def make_pool(dsn: str, timeout: float) -> AsyncConnectionPool[Any]:
    return AsyncConnectionPool(dsn, min_size=1, max_size=2, timeout=timeout, open=False)


def test_incident_J20(dsn: str) -> None:
    """Two requests, each in a loop of its own, as that client sends them.

    Bare, the pool that the first has opened cannot serve the second. Guarded, the same object is
    closed at the end of each loop, and opened anew in the next.
    """
    app: Any = make_app(make_pool(dsn, timeout=3), opens=True)
    assert asyncio.run(get(app)) == "ok"
    assert asyncio.run(get(app, "/copy")) == "PoolTimeout"

    pool = make_pool(dsn, timeout=30)
    app = lifeguard.Lifeguard().wrap(make_app(pool, opens=False), resources=[pool])
    assert asyncio.run(get(app)) == "ok"
    assert asyncio.run(get(app, "/copy")) == "ok"
    assert pool.closed
