"""sqlalchemy/sqlalchemy#6652: what a cancelled task had borrowed never comes back.

A web app ran out of connections after a while: each task that was cancelled between taking a
connection and giving it back kept it. Seen with asyncpg under SQLAlchemy; here it is psycopg_pool,
and an app that gives back by hand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from typing import Any

import pytest
from psycopg_pool import AsyncConnectionPool

from tests.incidents.driving import App, Exchange, respond, running, serves_all

pytestmark = pytest.mark.filterwarnings("ignore::lifeguard.LeakWarning")


def make_app(pool: AsyncConnectionPool[Any]) -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await receive()
        conn = await pool.getconn()
        await conn.execute("SELECT 1")
        await conn.commit()
        await pool.putconn(conn)
        await respond(send, "ok")

    return app


def test_incident_D01(dsn: str) -> None:
    """The app is cancelled at its first await that has to wait, at its second, until none is left.

    Bare, some of these cancellations cost the only connection of the pool, for good. Guarded, the
    next request is served after each of them.
    """
    bare = asyncio.run(sweep(dsn, guarded=False, patience=0.5))
    assert len(bare) >= 3
    assert not all(bare)

    guarded = asyncio.run(sweep(dsn, guarded=True, patience=40))
    assert len(guarded) == len(bare)
    assert all(guarded)


async def sweep(dsn: str, *, guarded: bool, patience: float) -> list[bool]:
    """For each await at which a request can be cancelled: whether the pool serves afterwards."""
    served = []
    while True:
        pool = AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False)
        async with running(make_app(pool), pool, guarded=guarded) as app:
            await pool.wait()
            request = cancelled_at(len(served) + 1, Exchange().run(app))
            try:
                await asyncio.create_task(request)
            except asyncio.CancelledError:
                served.append(await serves_all(pool, patience))
            else:
                return served


async def cancelled_at(wait: int, work: Awaitable[None]) -> None:
    """Do *work*, and cancel this task when it waits for the *wait*-th time."""
    await _Stepped(wait, work)


class _Stepped:
    def __init__(self, wait: int, work: Awaitable[None]) -> None:
        self.wait = wait
        self.work = work

    def __await__(self) -> Generator[Any, Any, None]:
        steps: Any = self.work.__await__()
        step, argument = steps.send, None
        while True:
            try:
                future = step(argument)
            except StopIteration:
                return
            finally:
                argument = None  # an exception here would keep this frame, and all below it
            self.wait -= 1
            if self.wait == 0:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                argument = yield future
            except BaseException as exc:
                step, argument = steps.throw, exc
            else:
                step = steps.send
