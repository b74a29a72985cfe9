"""A middleware that takes every scope for a request, around an app with a pool."""

from __future__ import annotations

from contextlib import asynccontextmanager

from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.incidents.apps import DSN, GUARDED, log

pool = AsyncConnectionPool(DSN, min_size=1, max_size=2, open=False)


@asynccontextmanager
async def lifespan(app):
    async with pool:
        yield


async def index(request: Request) -> Response:
    try:
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
    except Exception as exc:
        return PlainTextResponse(type(exc).__name__, status_code=500)
    return PlainTextResponse("ok")


class Traced:
    """Names a transaction after its path, and a lifespan has none."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        transaction = f"{scope['method']} {scope['path']}"
        await self.app(scope, receive, send)
        log.write("traced", transaction=transaction)


app = Traced(Starlette(routes=[Route("/", index)], lifespan=lifespan))

if GUARDED:
    import lifeguard

    app = lifeguard.wrap(app, resources=[pool])
