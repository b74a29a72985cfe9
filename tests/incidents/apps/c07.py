"""Server-sent events for every guest, after one look into the database."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.incidents.apps import DSN, GUARDED, log

if GUARDED:
    import lifeguard

pool = AsyncConnectionPool(DSN, min_size=1, max_size=3, timeout=2.5, open=False)


class GuestList:
    """What a dependency makes of the request's connection: given back when the request is over."""

    async def __aenter__(self):
        self.conn = await pool.getconn()
        return self.conn

    async def __aexit__(self, *exc):
        await pool.putconn(self.conn)


async def events(request: Request) -> Response:
    guests = GuestList()
    conn = await guests.__aenter__()
    await conn.execute("SELECT 1 AS event_exists")
    if GUARDED:
        await lifeguard.arelease()

    async def stream():
        try:
            yield "data: welcome\n\n"
            log.write("streaming")
            await asyncio.Event().wait()
        finally:
            await guests.__aexit__()

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
