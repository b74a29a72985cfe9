"""An app that writes down what is left when the server stops."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.incidents.apps import DSN, GUARDED, log

pool = AsyncConnectionPool(DSN, min_size=1, max_size=2, open=False)


async def slow(request: Request) -> Response:
    async with pool.connection() as conn:
        await conn.execute("SELECT 1")
        log.write("working")
        await asyncio.Event().wait()  # for somebody else's answer
    return PlainTextResponse("ok")


@asynccontextmanager
async def lifespan(app):
    await pool.open()
    yield
    async with pool.connection() as conn:  # flush what was buffered
        await conn.execute("SELECT 1")
    await pool.close()
    log.write("flushed and closed")


app = Starlette(routes=[Route("/slow", slow)], lifespan=lifespan)

if GUARDED:
    import lifeguard

    app = lifeguard.wrap(app, resources=[pool])
