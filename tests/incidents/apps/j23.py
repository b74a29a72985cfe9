"""A consumer that opens what it needs at its first use, for nobody tells it of the start."""

from __future__ import annotations

from contextlib import asynccontextmanager

from psycopg_pool import AsyncConnectionPool

from tests.incidents.apps import DSN, GUARDED, log


@asynccontextmanager
async def database():
    async with AsyncConnectionPool(DSN, min_size=1, max_size=2, open=False) as pool:
        log.write("pool opened")
        yield pool
    log.write("pool closed")


opened = None


async def get_pool() -> AsyncConnectionPool:
    global opened
    if GUARDED:
        return resource.get()
    if opened is None:
        opened = database()
        return await opened.__aenter__()
    raise AssertionError("this test sends one request")


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise ValueError(f"no consumer for {scope['type']}")
    pool = await get_pool()
    async with pool.connection() as conn:
        await conn.execute("SELECT 1")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


if GUARDED:
    import lifeguard

    resource = lifeguard.resource(database)
    app = lifeguard.wrap(app)
