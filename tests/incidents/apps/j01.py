"""A FastAPI app that consists of two others, each with a pool and handlers of its own."""

from __future__ import annotations

from fastapi import FastAPI, HTTPException
from psycopg_pool import AsyncConnectionPool

from tests.incidents.apps import DSN, GUARDED, log


def make_api(name: str) -> FastAPI:
    pool = AsyncConnectionPool(DSN, min_size=1, max_size=2, open=False)
    api = FastAPI()

    @api.on_event("startup")
    async def startup() -> None:
        await pool.open()
        log.write(f"{name} started")

    @api.on_event("shutdown")
    async def shutdown() -> None:
        await pool.close()
        log.write(f"{name} stopped")

    @api.get("/")
    async def index() -> str:
        try:
            async with pool.connection() as conn:
                await conn.execute("SELECT 1")
        except Exception as exc:
            raise HTTPException(500, type(exc).__name__) from exc
        return "ok"

    return api


if GUARDED:
    import lifeguard

    @lifeguard.lifespan(mounts=True)
    async def lifespan(app):
        yield

    app = FastAPI(lifespan=lifespan)
else:
    app = FastAPI()

app.mount("/shop", make_api("shop"))
app.mount("/admin", make_api("admin"))
