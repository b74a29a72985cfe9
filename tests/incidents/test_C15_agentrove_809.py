"""Mng-dev-ai/agentrove#809: streams and downloads keep the connection of their access check.

The database session of a request is closed when its response is through. For an event stream
that is when the tab closes, for a file when the slowest client has it. The project's own test asks
that the pool is whole while the body is being sent; so does this one.
"""

from __future__ import annotations

import asyncio
from typing import Any

from psycopg_pool import AsyncConnectionPool

import lifeguard
from tests.incidents.driving import App, Exchange, get, running, serves_all

SIZE = 2


def make_app(pool: AsyncConnectionPool[Any], *, guard: lifeguard.Lifeguard | None) -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        session = await pool.getconn()  # the request's, until the request is over
        try:
            await session.execute("SELECT 1 AS may_read")
            if guard is not None:
                await guard.arelease()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            if scope["path"] == "/":
                await send({"type": "http.response.body", "body": b"ok"})
                return
            part = b"data: event\n\n" if scope["path"] == "/events" else b"a block of the file"
            while (await receive())["type"] != "http.disconnect":
                await send({"type": "http.response.body", "body": part, "more_body": True})
        finally:
            if guard is None:
                await pool.putconn(session)

    return app


def test_incident_C15(dsn: str) -> None:
    """Bare, a stream and a download leave nothing of a pool of two: not even a page is served.

    Guarded, with ``await lifeguard.arelease()`` before the body, the pool is whole while both
    are being sent.
    """
    assert asyncio.run(serve(dsn, guarded=False, timeout=2.5)) == (False, "PoolTimeout")
    assert asyncio.run(serve(dsn, guarded=True, timeout=40)) == (True, "ok")


async def serve(dsn: str, *, guarded: bool, timeout: float) -> tuple[bool, str]:
    """Whether the pool is whole in the middle of the bodies, and what a page answers then."""
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=SIZE, timeout=timeout, open=False)
    guard = lifeguard.Lifeguard()
    app = make_app(pool, guard=guard if guarded else None)
    async with running(app, pool, guarded=guarded, guard=guard) as app:
        bodies = [Exchange("/events"), Exchange("/file")]
        tasks = [asyncio.create_task(body.run(app)) for body in bodies]
        for body in bodies:
            assert (await body.outgoing.get())["type"] == "http.response.start"
            assert (await body.outgoing.get())["more_body"]
        whole = await serves_all(pool, timeout)
        page = await asyncio.create_task(get(app))
        for body, task in zip(bodies, tasks, strict=True):
            body.incoming.put_nowait({"type": "http.disconnect"})
            await task
        return whole, page
