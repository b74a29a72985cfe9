"""`uvicorn --workers 2`: a pool opened at startup that nobody closes, and slow reports.

Bare, a deploy (SIGHUP) ends a worker whose reports still run. The process dies, its queries do
not: PostgreSQL works on for a client that is gone, while the new worker opens its own connections.
"""

# ruff: noqa: TC002, TC003 - written as one writes an app
from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator

from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

pool = AsyncConnectionPool(os.environ["DSN"], open=False, min_size=1, max_size=8, timeout=1)


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    await pool.open()
    yield


async def report(request: Request) -> Response:
    async with pool.connection() as conn:
        await conn.execute("select pg_sleep(12)")  # a report that takes its time
    return PlainTextResponse("report")


async def echo(request: Request) -> Response:
    async with pool.connection() as conn:
        cursor = await conn.execute("select %s::text", [request.path_params["token"]])
        (answer,) = await cursor.fetchone() or ("",)
    return PlainTextResponse(answer)


async def failed(request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{type(error).__name__}: {error}", status_code=500)


app = Starlette(
    routes=[Route("/report", report), Route("/echo/{token}", echo)],
    exception_handlers={Exception: failed},
    lifespan=lifespan,
)

if os.environ.get("GUARDED"):
    import lifeguard

    app = lifeguard.wrap(app, resources=[pool])
