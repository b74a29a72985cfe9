"""A FastAPI app with a lifespan, and an extension that knows of events only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from psycopg_pool import AsyncConnectionPool

from tests.incidents.apps import DSN, GUARDED, log


class Extension:
    """Brings a pool, and asks the app to be told of its start and its end."""

    def __init__(self, app: FastAPI) -> None:
        self.pool = AsyncConnectionPool(DSN, min_size=1, max_size=2, open=False)
        app.on_event("startup")(self.pool.open)
        app.on_event("shutdown")(self.pool.close)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    log.write("lifespan")
    yield


app = FastAPI(lifespan=lifespan)
extension = Extension(app)


@app.get("/")
async def index() -> str:
    try:
        async with extension.pool.connection() as conn:
            await conn.execute("SELECT 1")
    except Exception as exc:
        raise HTTPException(500, type(exc).__name__) from exc
    return "ok"


if GUARDED:
    import lifeguard

    app = lifeguard.wrap(app, resources=[extension.pool])
