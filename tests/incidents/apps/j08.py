"""A plain ASGI app that opens its pool at startup."""

from __future__ import annotations

from psycopg_pool import AsyncConnectionPool

from tests.incidents.apps import DSN, GUARDED

pool = AsyncConnectionPool(DSN, min_size=1, max_size=2, timeout=1, open=False)


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await pool.open(wait=True, timeout=1)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await pool.close()
        await send({"type": "lifespan.shutdown.complete"})
        return
    try:
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
        status, body = 200, b"ok"
    except Exception as exc:
        status, body = 500, type(exc).__name__.encode()
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


if GUARDED:
    import lifeguard

    app = lifeguard.wrap(app, resources=[pool])
