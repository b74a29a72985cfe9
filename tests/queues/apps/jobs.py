"""What the jobs of every queue here have: pools that note their connections, and the event log."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

import lifeguard
from tests.queues.apps import MAX_SIZE
from tests.support.eventlog import EventLog

BARE = "APP_BARE" in os.environ
DSN = os.environ["APP_DSN"]
BROKER = os.environ["APP_BROKER"]
QUEUE = os.environ["APP_QUEUE"]
POOLS = os.environ.get("APP_POOLS", "sync async").split()
LOG = EventLog.from_env()
SLOW_CLOSE = float(os.environ.get("APP_SLOW_CLOSE", "0"))
TIMEOUT = 3.0 if BARE else 30.0  # of a borrow: the bare side waits for what does not come back
KEPT = int(os.environ.get("APP_KEPT", "0"))  # jobs that do it right begin when so many are kept


def where() -> dict[str, Any]:
    """The loop and the thread of whoever asks."""
    loop = asyncio._get_running_loop()
    return {"loop": id(loop) if loop else None, "ident": threading.get_ident()}


async def noted_async(connection: Any) -> None:
    LOG.write("connected")


def noted(connection: Any) -> None:
    LOG.write("connected")


def async_pool() -> AsyncConnectionPool:
    return AsyncConnectionPool(
        DSN, open=False, min_size=1, max_size=MAX_SIZE, timeout=TIMEOUT, configure=noted_async
    )


def sync_pool() -> ConnectionPool:
    return ConnectionPool(
        DSN, open=False, min_size=1, max_size=MAX_SIZE, timeout=TIMEOUT, configure=noted
    )


# -- both sides -----------------------------------------------------------------------------------
#
# Bare, a pool opens with the first job that needs it, as many do it, and nobody closes it.
# Guarded, it is a resource of the worker.

if BARE:
    _async_pool: AsyncConnectionPool | None = None
    _sync_pool: ConnectionPool | None = None
    _lock = threading.Lock()

    async def adb() -> AsyncConnectionPool:
        global _async_pool
        if _async_pool is None:
            _async_pool = async_pool()
            LOG.write("opened", kind="async", **where())
            await _async_pool.open()
        return _async_pool

    def db() -> ConnectionPool:
        global _sync_pool
        with _lock:
            if _sync_pool is None:
                _sync_pool = sync_pool()
                LOG.write("opened", kind="sync", **where())
                _sync_pool.open()
        return _sync_pool

    def task(func: Any) -> Any:
        return func

    def unit_ended(name: str, **extra: Any) -> None:
        pass
else:
    if "sync" in POOLS:

        @lifeguard.resource
        def _db() -> Iterator[ConnectionPool]:
            LOG.write("opened", kind="sync", **where())
            with sync_pool() as pool:
                yield pool
            LOG.write("closed", kind="sync", **where())

    if "async" in POOLS:

        @lifeguard.resource
        async def _adb() -> AsyncIterator[AsyncConnectionPool]:
            LOG.write("opened", kind="async", **where())
            async with async_pool() as pool:
                yield pool
                await asyncio.sleep(SLOW_CLOSE)
            LOG.write("closed", kind="async", **where())

    async def adb() -> AsyncConnectionPool:
        return _adb.get()

    def db() -> ConnectionPool:
        return _db.get()

    task = lifeguard.task

    def unit_ended(name: str, **extra: Any) -> None:
        """Write *name* when the unit ends that this is called in."""
        lifeguard.callback(lambda: LOG.write(name, **extra, **where()))


# -- what jobs do ---------------------------------------------------------------------------------


async def select(n: int) -> int:
    """Ask for *n*, like a job that does it right."""
    unit_ended("ended", n=n)
    while LOG.count("kept") < KEPT:
        await asyncio.sleep(0.01)
    async with (await adb()).connection() as conn:
        row = await (await conn.execute("SELECT %s::int", [n])).fetchone()
    assert row is not None
    LOG.write("answered", n=row[0], **where())
    return int(row[0])


def select_sync(n: int) -> int:
    unit_ended("ended", n=n)
    while LOG.count("kept") < KEPT:
        time.sleep(0.01)
    with db().connection() as conn:
        row = conn.execute("SELECT %s::int", [n]).fetchone()
    assert row is not None
    LOG.write("answered", n=row[0], **where())
    return int(row[0])


async def keep(how: str) -> None:
    """Borrow a connection and do not give it back, whatever becomes of the job."""
    unit_ended("ended keep", how=how)
    conn = await (await adb()).getconn()
    await conn.execute("SELECT 1")
    LOG.write("kept", how=how)
    if how == "fails":
        raise RuntimeError("this job fails")
    if how == "hangs":
        await asyncio.Event().wait()


def keep_sync(how: str) -> None:
    unit_ended("ended keep", how=how)
    try:
        conn = db().getconn()
    except PoolTimeout:
        LOG.write("refused", how=how)
        raise
    conn.execute("SELECT 1")
    LOG.write("kept", how=how)
    if how == "fails":
        raise RuntimeError("this job fails")
