"""A pool that a lifespan yields in its state is guarded like one that was declared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from psycopg_pool import AsyncConnectionPool

import lifeguard
from lifeguard.asgi import lifespan_of
from lifeguard.testing import Postgres
from tests.examples.server import settled


def test_a_leak_of_a_pool_in_the_state_is_taken_back(pg: Postgres, appname: str, dsn: str) -> None:
    guard = lifeguard.Lifeguard()

    @guard.lifespan
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with AsyncConnectionPool(dsn, open=False, min_size=1, max_size=2, timeout=40) as pool:
            yield {"pool": pool, "name": "shop"}

    api = FastAPI(lifespan=lifespan)

    @api.get("/careless")
    async def careless(request: Request) -> str:
        await request.state.pool.getconn()
        return str(request.state.name)

    app = guard.wrap(api)

    async def requests() -> None:
        async with lifespan_of(app) as state:

            async def with_state(scope: Any, receive: Any, send: Any) -> None:
                await app({**scope, "state": {**state}}, receive, send)  # as servers do

            transport = httpx.ASGITransport(with_state)
            async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
                for _ in range(5):
                    with pytest.warns(lifeguard.LeakWarning, match="careless"):
                        assert (await client.get("/careless")).json() == "shop"
            assert settled(pg, appname, 2) <= 2

    asyncio.run(requests())
    assert pg.wait_count(0, prefix=appname) == 0
