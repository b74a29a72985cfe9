"""A Starlette app that borrows by hand, in a request and in a background task."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.incidents.apps import DSN, GUARDED, PATIENCE, log

pool = AsyncConnectionPool(DSN, min_size=1, max_size=1, timeout=PATIENCE, open=False)


async def long_query() -> None:
    conn = await pool.getconn()
    try:
        log.write("working")
        await conn.execute("SELECT pg_sleep(5)")
    except asyncio.CancelledError:
        log.write("cancelled")
        raise
    await conn.commit()
    await pool.putconn(conn)


async def report(request: Request) -> Response:
    await long_query()
    return PlainTextResponse("ok")


async def order(request: Request) -> Response:
    return PlainTextResponse("accepted", background=BackgroundTask(long_query))


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
    routes=[Route("/", index), Route("/report", report), Route("/order", order)],
    lifespan=lifespan,
)

if GUARDED:
    import lifeguard

    app = lifeguard.wrap(app, resources=[pool])
