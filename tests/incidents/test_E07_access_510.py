"""discord/access#510: a tool runs in the server's own task, and no request's end cleans up there.

Sessions are given back by the teardown of the request that asked for them. An MCP server runs its
tools in a task that was started before any request, so what a tool borrows is registered where
nothing ends, until the server does.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from contextvars import ContextVar
from typing import Any

from psycopg_pool import AsyncConnectionPool

import lifeguard
from tests.incidents.driving import get, leaks_are_reported, respond, running

SIZE = 2


class ToolServer:
    """Runs tools, one after another, in one long-lived task."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self.pool = pool
        self.calls: asyncio.Queue[asyncio.Future[str]] = asyncio.Queue()
        self.teardown: ContextVar[AsyncExitStack] = ContextVar("teardown")
        self.tool = self.look_up

    async def session(self) -> Any:
        conn = await self.pool.getconn()
        self.teardown.get().push_async_callback(self.pool.putconn, conn)
        return conn

    async def look_up(self) -> str:
        await (await self.session()).execute("SELECT 1")
        return "ok"

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            self.teardown.set(stack)
            while True:
                answer = await self.calls.get()
                try:
                    answer.set_result(await self.tool())
                except Exception as exc:
                    answer.set_result(type(exc).__name__)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        async with AsyncExitStack() as stack:
            self.teardown.set(stack)
            answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            self.calls.put_nowait(answer)
            await respond(send, await answer)


def test_incident_E07(dsn: str) -> None:
    """Bare, the pool is empty after as many calls as it is large.

    Guarded, with the tool as a ``lifeguard.task``, what a call borrowed is back at its end.
    """
    answers = asyncio.run(call_tools(dsn, guarded=False, timeout=2.5))
    assert answers == ["ok"] * SIZE + ["PoolTimeout"]

    with leaks_are_reported():
        answers = asyncio.run(call_tools(dsn, guarded=True, timeout=40))
    assert answers == ["ok"] * (SIZE + 1)


async def call_tools(dsn: str, *, guarded: bool, timeout: float) -> list[str]:
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=SIZE, timeout=timeout, open=False)
    server = ToolServer(pool)
    guard = lifeguard.Lifeguard()
    if guarded:
        server.tool = guard.task(server.tool)
    async with running(server.app, pool, guarded=guarded, guard=guard) as app:
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(server.run())
            answers = [await get(app) for _ in range(SIZE + 1)]
            serving.cancel()
    return answers
