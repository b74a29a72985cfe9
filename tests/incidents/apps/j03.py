"""A mounted sub-app that owns a pool."""

from __future__ import annotations

from contextlib import asynccontextmanager

from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from tests.incidents.apps import DSN, GUARDED, log

pool = AsyncConnectionPool(DSN, min_size=1, max_size=2, open=False)


@asynccontextmanager
async def tools_lifespan(app):
    async with pool:
        log.write("pool opened")
        yield
    log.write("pool closed")


async def tool(request: Request) -> Response:
    try:
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
    except Exception as exc:
        return PlainTextResponse(type(exc).__name__, status_code=500)
    return PlainTextResponse("ok")


tools = Starlette(routes=[Route("/", tool)], lifespan=tools_lifespan)


async def lifespan(app):
    log.write("main started")
    yield
    log.write("main stopped")


if GUARDED:
    import lifeguard

    lifespan = lifeguard.lifespan(mounts=True)(lifespan)
else:
    lifespan = asynccontextmanager(lifespan)

app = Starlette(routes=[Mount("/tools", app=tools)], lifespan=lifespan)
