"""pytest-dev/pytest-asyncio#402: the second test of an app fails, because the loop is another.

Each test brings an event loop of its own; the app has one pool for the process. The first test
passes, and the second finds a pool that belongs to a loop which is gone, or was closed with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from psycopg_pool import AsyncConnectionPool, PoolClosed
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import lifeguard
from tests.incidents.driving import get, lifespan


def make_app(pool: AsyncConnectionPool[Any]) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await pool.open()
        yield
        await pool.close()

    async def index(request: Request) -> Response:
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
        return PlainTextResponse("ok")

    return Starlette(routes=[Route("/", index)], lifespan=lifespan)


def test_incident_J19(dsn: str) -> None:
    """Bare, the second test of the same app cannot even start it. Guarded, both are served."""
    app: Any = make_app(AsyncConnectionPool(dsn, min_size=1, max_size=2, open=False))
    asyncio.run(one_test(app))
    with pytest.raises(PoolClosed, match="cannot be reused"):
        asyncio.run(one_test(app))

    pool = AsyncConnectionPool(dsn, min_size=1, max_size=2, open=False)
    app = lifeguard.Lifeguard().wrap(make_app(pool), resources=[pool])
    asyncio.run(one_test(app))
    asyncio.run(one_test(app))


async def one_test(app: Any) -> None:
    async with lifespan(app):
        assert await get(app) == "ok"
