"""A FastAPI app with handlers for its start and its end."""

from __future__ import annotations

from fastapi import FastAPI
from psycopg_pool import AsyncConnectionPool

from tests.incidents.apps import DSN, GUARDED, log

pool = AsyncConnectionPool(DSN, min_size=1, max_size=2, open=False)
app = FastAPI()


@app.on_event("startup")
async def on_startup() -> None:
    await pool.open()
    log.write("on startup trigger")


@app.on_event("shutdown")
async def on_shutdown() -> None:
    await pool.close()
    log.write("on shutdown trigger")


@app.get("/test")
async def tester() -> str:
    async with pool.connection() as conn:
        await conn.execute("SELECT 1")
    return "test"


if GUARDED:
    import lifeguard

    app = lifeguard.wrap(app, resources=[pool])
