"""A job that is streamed to a client, and notes in the database how far it got."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import anyio
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.incidents.apps import DSN, GUARDED, log

pool = AsyncConnectionPool(DSN, min_size=1, max_size=2, open=False)


async def save_progress() -> None:
    async with pool.connection() as conn:  # first what is there...
        await conn.execute("SELECT pg_sleep(0.5)")
    async with pool.connection() as conn:  # ... then where to go on
        await conn.execute("SELECT 1")


async def events(request: Request) -> Response:
    async def stream():
        try:
            yield "step 1\n"
            log.write("streaming")
            await asyncio.Event().wait()
        finally:
            with anyio.CancelScope(shield=True):  # Starlette streams in a task group of anyio
                try:
                    await save_progress()
                    log.write("progress saved")
                except BaseException as exc:
                    log.write("progress lost", error=type(exc).__name__)
                    raise

    return StreamingResponse(stream())


@asynccontextmanager
async def lifespan(app):
    async with pool:
        yield


routes = [Route("/events", events)]

if GUARDED:
    import lifeguard

    app = lifeguard.wrap(Starlette(routes=routes), resources=[pool])
else:
    app = Starlette(routes=routes, lifespan=lifespan)
