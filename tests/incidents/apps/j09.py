"""A plain ASGI app whose startup gets half-way."""

from __future__ import annotations

from contextlib import asynccontextmanager

from psycopg_pool import AsyncConnectionPool

from tests.incidents.apps import DSN, GUARDED, log

pool = AsyncConnectionPool(DSN, min_size=1, max_size=2, open=False)


@asynccontextmanager
async def database():
    async with pool:
        log.write("pool opened")
        yield pool
    log.write("pool closed")


async def load_prices() -> None:
    async with pool.connection() as conn:
        await conn.execute("SELECT * FROM prices")  # there is no such table


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        opened = None
        if not GUARDED:
            opened = database()
            await opened.__aenter__()
        await load_prices()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if opened is not None:
            await opened.__aexit__(None, None, None)
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 500, "headers": []})
    await send({"type": "http.response.body", "body": b"no prices"})


if GUARDED:
    import lifeguard

    lifeguard.resource(database)
    app = lifeguard.wrap(app)
