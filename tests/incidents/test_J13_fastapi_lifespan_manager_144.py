"""uriyyo/fastapi-lifespan-manager#144: 'The server does not support "state" in the lifespan scope.'

A lifespan that yields state works under one server, and fails under another or in a test client:
the part of the protocol that hands it on is optional. nginx/unit#864 reports the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import lifeguard
from tests.incidents.driving import get, lifespan


def make_app(dsn: str) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with AsyncConnectionPool(dsn, min_size=1, max_size=2, open=False) as pool:
            yield {"pool": pool}

    async def index(request: Request) -> Response:
        async with request.state.pool.connection() as conn:
            await conn.execute("SELECT 1")
        return PlainTextResponse("ok")

    return Starlette(routes=[Route("/", index)], lifespan=lifespan)


def test_incident_J13(dsn: str) -> None:
    """A server that speaks the lifespan protocol as it was before there was state.

    Bare, the app does not start. Guarded, lifeguard hands the state on.
    """
    with pytest.raises(RuntimeError, match='does not support "state"'):
        asyncio.run(two_requests(make_app(dsn)))
    asyncio.run(two_requests(lifeguard.Lifeguard().wrap(make_app(dsn))))


async def two_requests(app: Any) -> None:
    async with lifespan(app):
        assert await get(app) == "ok"
        assert await get(app) == "ok"
