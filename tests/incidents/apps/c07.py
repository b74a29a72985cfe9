"""Server-sent events for every guest, after one look into the database."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.incidents.apps import DSN, GUARDED, PATIENCE, log

if GUARDED:
    import lifeguard

pool = AsyncConnectionPool(DSN, min_size=1, max_size=3, timeout=PATIENCE, open=False)


async def events(request: Request) -> Response:
    conn = await pool.getconn()  # the request's connection, until the request is over
    await conn.execute("SELECT 1 AS event_exists")
    if GUARDED:
        await lifeguard.arelease()

    async def stream():
        try:
            yield "data: welcome\n\n"
            log.write("streaming")
            await asyncio.Event().wait()
        finally:
            await pool.putconn(conn)

    return StreamingResponse(stream(), media_type="text/event-stream")


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


app = Starlette(routes=[Route("/", index), Route("/events", events)], lifespan=lifespan)

if GUARDED:
    app = lifeguard.wrap(app, resources=[pool])
