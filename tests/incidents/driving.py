"""Apps called in this process, by the protocol, as a server would call them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

import lifeguard

Scope = dict[str, Any]
App = Callable[..., Awaitable[None]]


class Exchange:
    """One request or websocket: what goes in, and what came out."""

    def __init__(self, path: str = "/", kind: str = "http") -> None:
        self.scope: Scope = {
            "type": kind,
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [],
        }
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.outgoing: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        if kind == "http":
            self.incoming.put_nowait({"type": "http.request", "body": b"", "more_body": False})

    async def run(self, app: App) -> None:
        await app(self.scope, self.incoming.get, self.outgoing.put)


@contextlib.asynccontextmanager
async def running(
    app: App,
    pool: AsyncConnectionPool[Any],
    *,
    guarded: bool,
    guard: lifeguard.Lifeguard | None = None,
) -> AsyncIterator[App]:
    """The app to send requests to, while *pool* is open: as it is, or wrapped by lifeguard."""
    if not guarded:
        async with pool:
            yield app
        return
    guard = guard or lifeguard.Lifeguard()
    app = guard.wrap(app, resources=[pool])
    async with lifespan(app):
        yield app


@contextlib.asynccontextmanager
async def lifespan(app: App) -> AsyncIterator[None]:
    """Start *app* and stop it, as a server does."""
    server = Exchange(kind="lifespan")
    life = asyncio.create_task(server.run(app))
    server.incoming.put_nowait({"type": "lifespan.startup"})
    answer = await server.outgoing.get()
    if answer["type"] != "lifespan.startup.complete":
        await life  # raises what the app raised
    try:
        yield
    finally:
        server.incoming.put_nowait({"type": "lifespan.shutdown"})
        answer = await server.outgoing.get()
        assert answer["type"] == "lifespan.shutdown.complete", answer
        await life


async def get(app: App, path: str = "/") -> str:
    """The body of the answer, or the name of what the app raised (a server says 500 there)."""
    exchange = Exchange(path)
    try:
        await exchange.run(app)
    except Exception as exc:
        return type(exc).__name__
    body = b""
    while not exchange.outgoing.empty():
        body += exchange.outgoing.get_nowait().get("body", b"")
    return body.decode()


async def respond(send: Callable[[Any], Awaitable[None]], body: str) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body.encode()})


async def serves_all(pool: AsyncConnectionPool[Any], timeout: float) -> bool:
    """Whether *pool* has its full size to give: as many borrowers at once as it may serve."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            for _ in range(pool.max_size):
                await stack.enter_async_context(pool.connection(timeout))
        except PoolTimeout:
            return False
    return True


def serves_all_threads(pool: ConnectionPool[Any], timeout: float) -> bool:
    with contextlib.ExitStack() as stack:
        try:
            for _ in range(pool.max_size):
                stack.enter_context(pool.connection(timeout))
        except PoolTimeout:
            return False
    return True


@contextlib.contextmanager
def leaks_are_reported() -> Iterator[pytest.WarningsRecorder]:
    """For the guarded side of code that leaks: it is put right, and it is said."""
    with pytest.warns(lifeguard.LeakWarning) as reports:
        yield reports
