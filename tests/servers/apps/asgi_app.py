"""The ASGI app of both matrices. What happens to it is in the event log.

On asyncio its pool is an ``AsyncConnectionPool``; on trio, which that one does not know, and
without lifeguard it is a ``ConnectionPool``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

import anyio
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from tests.servers.apps.common import (
    BARE,
    QUERY,
    SIZE,
    BarePool,
    dsn,
    gate_is_open,
    guard,
    log,
    request_id,
    wait_at_gate,
)
from tests.servers.rows import FLOOD, STREAM

SYNC = BARE or os.environ.get("APP_POOL") == "sync"

if BARE:
    db = BarePool()
elif SYNC:

    @guard.resource
    def db() -> Iterator[ConnectionPool]:
        with ConnectionPool(dsn(), open=False, **SIZE) as pool:
            pool.wait()
            log.write("opened")
            yield pool
        log.write("closed")  # not in a `finally`: a generator that is thrown away is not closed

else:

    @guard.resource
    async def db() -> AsyncIterator[AsyncConnectionPool]:
        async with AsyncConnectionPool(dsn(), open=False, **SIZE) as pool:
            await pool.wait()
            log.write("opened")
            yield pool
        log.write("closed")


class Connection:
    """One of either pool, for the length of a block."""

    def __init__(self) -> None:
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        if SYNC:
            self._connection = self._stack.enter_context(db.get().connection())
        else:
            self._connection = await self._stack.enter_async_context(db.get().connection())
        return self

    async def __aexit__(self, *args: object) -> None:
        await self._stack.__aexit__(*args)

    async def select(self, value: str) -> str:
        result = self._connection.execute("SELECT %s::text", [value])
        row = result.fetchone() if SYNC else await (await result).fetchone()
        return row[0]

    async def sleep(self, seconds: float) -> None:
        result = self._connection.execute("SELECT pg_sleep(%s)", [seconds])
        _ = result if SYNC else await result


async def await_gate(request: str) -> None:
    with anyio.move_on_after(20):
        while not gate_is_open(request):
            await anyio.sleep(0.01)


async def lifespan(receive: Any, send: Any) -> None:
    message = await receive()
    assert message["type"] == "lifespan.startup"
    log.write("startup")
    await send({"type": "lifespan.startup.complete"})
    message = await receive()
    assert message["type"] == "lifespan.shutdown"
    log.write("shutdown")
    await send({"type": "lifespan.shutdown.complete"})


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    view = scope["path"].strip("/")
    request = request_id(scope["query_string"].decode())
    log.write("started", id=request)
    if not BARE:
        guard.callback(log.write, "finished", id=request)
    try:
        await serve(view, request, send)
    finally:
        log.write("ended", id=request)


async def serve(view: str, request: str, send: Any) -> None:
    headers = [(b"content-type", b"text/plain")]

    async def start(*more: tuple[bytes, bytes]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [*headers, *more]})

    async def chunk(data: bytes, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": more})

    if view == "leak":
        connection = db.get().getconn()
        connection = connection if SYNC else await connection
        result = connection.execute("SELECT 1")
        _ = result if SYNC else await result
    else:
        async with Connection() as connection:
            await connection.select("1")
            if view == "error":
                raise RuntimeError("as asked")
            if view == "query":
                await connection.sleep(QUERY)
            if view == "block":
                log.write("waiting", id=request)
                wait_at_gate(request)  # and with it the whole loop
            if view == "wait":
                log.write("waiting", id=request)
                await await_gate(request)
            if view == "stream":
                await start()
                for number in range(STREAM):
                    await chunk((await connection.select(f"line {number}\n")).encode())
                await chunk(b"", more=False)
                return
            if view == "flood":
                await start()
                await chunk(b"first")
                await await_gate(request)
                for _ in range(FLOOD):
                    await chunk(b"." * 65536)
                await chunk(b"", more=False)
                return
    body = f"{view} {request}".encode()
    await start((b"content-length", str(len(body)).encode()))
    await chunk(body, more=False)


if not BARE:
    app = guard.wrap(app)
