"""Soju06/codex-lb#672: a leak fills a pool of any size, and the only hint points elsewhere.

Raising its limit to 100 connections only put the outage off, by two days. The one message there
was came from the garbage collector, which happened to run inside ``json.decoder``: its stack
says where the collector ran, not who had borrowed.
"""

from __future__ import annotations

import asyncio
import gc
import json
import warnings
from typing import Any

from psycopg_pool import AsyncConnectionPool

from tests.incidents.driving import App, get, leaks_are_reported, respond, running

SIZE = 2


def make_app(pool: AsyncConnectionPool[Any]) -> App:
    async def track_usage() -> None:  # who is to be found
        conn = await pool.getconn()
        await conn.execute("SELECT 1")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        if scope["path"] == "/track":
            await track_usage()
        json.loads("[" + "[]," * 1000 + "[]]")
        gc.collect()
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
        await respond(send, "ok")

    return app


def test_incident_E12(dsn: str) -> None:
    """Bare, the pool is empty after as many leaks as it is large, and nothing names the borrower.

    Guarded, each leak is reported with the stack that borrowed, and the pool keeps its size.
    """
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        answers = asyncio.run(serve(dsn, guarded=False, timeout=2.5))
    assert answers[-1] == "PoolTimeout"
    assert not [warning for warning in heard if "track_usage" in str(warning.message)]

    with leaks_are_reported() as reports:
        answers = asyncio.run(serve(dsn, guarded=True, timeout=40))
    assert set(answers) == {"ok"}
    assert len(reports) == SIZE + 1
    for report in reports:
        assert "track_usage" in str(report.message)
        assert "'GET /track'" in str(report.message)
        assert report.filename == __file__


async def serve(dsn: str, *, guarded: bool, timeout: float) -> list[str]:
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=SIZE, timeout=timeout, open=False)
    async with running(make_app(pool), pool, guarded=guarded) as app:
        return [await get(app, path) for path in ["/track"] * (SIZE + 1) + ["/"]]
