"""Votes, on Starlette: a pool at module level, a stream, and a websocket.

Start it with ``python examples/run.py starlette_app``, or on a PostgreSQL of your own::

    LIFEGUARD_DSN=postgresql://... uvicorn --app-dir examples/starlette_app app:app
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

import lifeguard

# Not open yet: a pool that opens at import would be shared by every process forked after it.
pool = AsyncConnectionPool(os.environ["LIFEGUARD_DSN"], open=False, min_size=1, max_size=4)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """The app's own startup finds the pool open; its shutdown finds it open still."""
    async with pool.connection() as conn:
        await conn.execute("SELECT pg_advisory_xact_lock(1)")  # the workers start together
        await conn.execute("CREATE TABLE IF NOT EXISTS vote (name text)")
    yield


async def add_vote(name: str) -> int:
    """One more vote for *name*; how many it has by now."""
    async with pool.connection() as conn:
        await conn.execute("INSERT INTO vote VALUES (%s)", [name])
        cursor = await conn.execute("SELECT count(*) FROM vote WHERE name = %s", [name])
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def vote(request: Request) -> JSONResponse:
    name = request.path_params["name"]
    return JSONResponse({name: await add_vote(name)})


async def export(request: Request) -> StreamingResponse:
    """A stream that reads as it goes. Its connection is back however the stream ends."""

    async def lines() -> AsyncIterator[str]:
        async with pool.connection() as conn, conn.cursor(name="export") as cursor:
            await cursor.execute("SELECT name, count(*) FROM vote GROUP BY name ORDER BY name")
            async for name, votes in cursor:
                yield f"{name},{votes}\n"

    return StreamingResponse(lines(), media_type="text/csv")


async def live(websocket: WebSocket) -> None:
    """It may last for hours: each message is a unit of its own, which ends with the answer."""
    await websocket.accept()
    async for name in websocket.iter_text():
        async with lifeguard.unit("vote by websocket"):
            await websocket.send_text(f"{name}: {await add_vote(name)}")


routes = [
    Route("/vote/{name}", vote, methods=["POST"]),
    Route("/export", export),
    WebSocketRoute("/live", live),
]
app = lifeguard.wrap(Starlette(routes=routes, lifespan=lifespan), resources=[pool])
