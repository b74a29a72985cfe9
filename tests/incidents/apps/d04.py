"""A FastAPI-like stack: a BaseHTTPMiddleware around a response that streams rows."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.incidents.apps import DSN, GUARDED, PATIENCE, log

pool = AsyncConnectionPool(DSN, min_size=1, max_size=2, timeout=PATIENCE, open=False)


async def passthrough(request, call_next):
    return await call_next(request)


async def rows():
    conn = await pool.getconn()
    try:
        await conn.execute("SELECT 1")
        yield "first row\n"
        log.write("streaming")
        await asyncio.Event().wait()  # for what the next row is made of
        yield "last row\n"
    except (asyncio.CancelledError, GeneratorExit):
        log.write("cancelled")
        raise
    await pool.putconn(conn)


async def stream(request: Request) -> Response:
    return StreamingResponse(rows())


async def index(request: Request) -> Response:
    try:
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
    except Exception as exc:
        return PlainTextResponse(type(exc).__name__, status_code=500)
    return PlainTextResponse("ok")


@asynccontextmanager
async def lifespan(app):
    async with pool:
        yield


app = Starlette(
    routes=[Route("/", index), Route("/stream", stream)],
    middleware=[Middleware(BaseHTTPMiddleware, dispatch=passthrough)],
    lifespan=lifespan,
)

if GUARDED:
    import lifeguard

    app = lifeguard.wrap(app, resources=[pool])
