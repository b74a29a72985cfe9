"""A Starlette app with a pool, for a server with a master."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager

from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.incidents.apps import DSN, GUARDED, log

pool = AsyncConnectionPool(DSN, min_size=2, max_size=2, open=False)


async def index(request: Request) -> Response:
    async with pool.connection() as conn:
        await conn.execute("SELECT 1")
    return PlainTextResponse(str(os.getpid()))


@asynccontextmanager
async def lifespan(app):
    await pool.open(wait=True)
    yield
    await pool.close()
    log.write("shut down")


app = Starlette(routes=[Route("/", index)], lifespan=lifespan)

if GUARDED:
    import lifeguard

    app = lifeguard.Lifeguard(die_with_parent=True).wrap(app, resources=[pool])
