"""A server that is started by a program of one's own, around which its resources are opened."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager

import uvicorn
from psycopg_pool import AsyncConnectionPool

from tests.incidents.apps import DSN, GUARDED, log

pool = AsyncConnectionPool(DSN, min_size=1, max_size=2, open=False)


@asynccontextmanager
async def lifespan():
    async with pool:
        log.write("startup")
        try:
            yield
        finally:
            async with pool.connection() as conn:  # flush what was buffered
                await conn.execute("SELECT 1")
            log.write("shutdown")


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise ValueError(scope["type"])
    async with pool.connection() as conn:
        await conn.execute("SELECT 1")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


if GUARDED:
    import lifeguard

    app = lifeguard.wrap(app)


async def main() -> None:
    port = int(os.environ["INCIDENT_PORT"])
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port))
    async with lifespan():
        await server.serve()


if __name__ == "__main__":
    asyncio.run(main())
