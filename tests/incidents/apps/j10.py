"""A Starlette app with a lifespan, for a server that is told not to run it."""

from __future__ import annotations

from contextlib import asynccontextmanager

from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.incidents.apps import DSN, GUARDED, log


async def lifespan(app):
    async with AsyncConnectionPool(DSN, min_size=1, max_size=2, open=False) as pool:
        log.write("pool opened")
        yield {"pool": pool}
    log.write("pool closed")


async def index(request: Request) -> Response:
    try:
        async with request.state.pool.connection() as conn:
            await conn.execute("SELECT 1")
    except Exception as exc:
        return PlainTextResponse(type(exc).__name__, status_code=500)
    return PlainTextResponse("ok")


routes = [Route("/", index)]

if GUARDED:
    import lifeguard

    app = Starlette(routes=routes, lifespan=lifeguard.lifespan(lifespan))
    app = lifeguard.wrap(app)
else:
    app = Starlette(routes=routes, lifespan=asynccontextmanager(lifespan))
