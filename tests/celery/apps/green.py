"""A sync and an async task, for pools that have greenlets where others have threads."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

from psycopg_pool import AsyncConnectionPool, ConnectionPool

import lifeguard
import lifeguard.celery
from tests.celery.apps import celery_app, log, named

app = celery_app("green")

if os.environ.get("APP_ASYNC_RESOURCE"):

    @lifeguard.resource
    async def adb() -> AsyncIterator[AsyncConnectionPool[Any]]:
        async with AsyncConnectionPool(named("async"), open=False) as pool:
            yield pool


@lifeguard.resource
def db() -> Iterator[ConnectionPool[Any]]:
    log.write("opened")
    with ConnectionPool(named("sync"), open=False, min_size=1, max_size=4) as pool:
        yield pool
    log.write("closed")


@app.task(name="ask")
@lifeguard.task
def ask(number: int) -> int:
    with db.get().connection() as conn:
        row: Any = conn.execute("SELECT %s::int, pg_sleep(0.002)", [number]).fetchone()
    return int(row[0])


@app.task(name="ask_async")
@lifeguard.celery.task
async def ask_async(number: int) -> int:
    log.write("ran")
    return number
