"""bluesky/tiled#1172: a websocket pins the connection that one look-up needed.

The database session belonged to the request. A websocket is a request that does not end, so a
few open ones held the whole pool, and other clients waited until they timed out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from psycopg_pool import AsyncConnectionPool

import lifeguard
from tests.incidents.driving import App, Exchange, leaks_are_reported, running, serves_all

VIEWERS = 3

Unit = Callable[[], AbstractAsyncContextManager[Any]]


def make_app(pool: AsyncConnectionPool[Any], unit: Unit) -> App:
    async def authorize(request: dict[str, Any], token: str) -> bool:
        """The connection of the request, in its state until the request's end."""
        if "conn" not in request or request["conn"].closed:
            request["conn"] = await pool.getconn()
        cursor = await request["conn"].execute("SELECT %s = 'secret'", [token])
        return bool((await cursor.fetchone())[0])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        request: dict[str, Any] = {}
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] != "websocket.disconnect":
            async with unit():
                allowed = await authorize(request, message["text"])
            await send({"type": "websocket.send", "text": str(allowed)})
        if "conn" in request and not request["conn"].closed:
            await pool.putconn(request["conn"])

    return app


def test_incident_C17(dsn: str) -> None:
    """Bare, as many idle websockets as the pool is large leave nothing for anybody else.

    Guarded, with a unit around each message, the pool is whole between the messages, and the next
    message of the same websocket works.
    """
    assert not asyncio.run(idle_websockets(dsn, guarded=False, timeout=0.5))
    with leaks_are_reported():
        assert asyncio.run(idle_websockets(dsn, guarded=True, timeout=40))


async def idle_websockets(dsn: str, *, guarded: bool, timeout: float) -> bool:
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=VIEWERS, open=False)
    guard = lifeguard.Lifeguard()
    app = make_app(pool, guard.unit if guarded else nullcontext)
    async with running(app, pool, guarded=guarded, guard=guard) as app:
        websockets = [Exchange(kind="websocket") for _ in range(VIEWERS)]
        tasks = [asyncio.create_task(websocket.run(app)) for websocket in websockets]
        for websocket in websockets:
            websocket.incoming.put_nowait({"type": "websocket.connect"})
            await websocket.outgoing.get()
            assert await ask(websocket) == "True"
        whole = await serves_all(pool, timeout)
        for websocket, task in zip(websockets, tasks, strict=True):
            assert await ask(websocket) == "True"
            websocket.incoming.put_nowait({"type": "websocket.disconnect", "code": 1005})
            await task
        return whole


async def ask(websocket: Exchange) -> str:
    websocket.incoming.put_nowait({"type": "websocket.receive", "text": "secret"})
    answer: str = (await websocket.outgoing.get())["text"]
    return answer
