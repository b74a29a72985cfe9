"""`uvicorn`: a live feed that borrows with `getconn()`, and clients that leave in the middle.

Bare, the abandoned stream is ended where it stands, so neither `discard()` nor `putconn()` is ever
reached: every client that leaves parks one connection "idle in transaction", until none is left.
"""

# ruff: noqa: TC002, TC003 - written as one writes an app
from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

pool = AsyncConnectionPool(os.environ["DSN"], open=False, min_size=1, max_size=6, timeout=1)
viewers: set[AsyncConnection] = set()  # who is watching now


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    await pool.open()
    yield


async def ticks() -> AsyncIterator[str]:
    conn = await pool.getconn()
    viewers.add(conn)
    for _ in range(20):
        cursor = await conn.execute("select clock_timestamp()::text")
        (now,) = await cursor.fetchone() or ("",)
        yield f"data: {now}\n\n"
        await asyncio.sleep(0.05)
    viewers.discard(conn)
    await pool.putconn(conn)


async def feed(request: Request) -> Response:
    return StreamingResponse(ticks(), media_type="text/event-stream")


async def echo(request: Request) -> Response:
    async with pool.connection() as conn:
        cursor = await conn.execute("select %s::text", [request.path_params["token"]])
        (answer,) = await cursor.fetchone() or ("",)
    return PlainTextResponse(answer)


async def failed(request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{type(error).__name__}: {error}", status_code=500)


app = Starlette(
    routes=[Route("/feed", feed), Route("/echo/{token}", echo)],
    exception_handlers={Exception: failed},
    lifespan=lifespan,
)

if os.environ.get("GUARDED"):
    import lifeguard

    app = lifeguard.wrap(app, resources=[pool])
