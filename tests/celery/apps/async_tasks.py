"""Async tasks beside sync ones, with an async and a sync pool: what runs where, and what it saw."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

from celery.exceptions import Ignore, Reject
from celery.signals import task_prerun
from psycopg_pool import AsyncConnectionPool, ConnectionPool

import lifeguard
import lifeguard.celery
from tests.celery.apps import celery_app, log, named, wait_at_gate

app = celery_app("async_tasks", task_track_started=True, task_acks_late=False)

SIZES: dict[str, Any] = {"min_size": 1, "max_size": 4, "timeout": 40}
QUESTION = "SELECT %s::int, pg_backend_pid(), pg_sleep(0.002)"


@lifeguard.resource
async def adb() -> AsyncIterator[AsyncConnectionPool[Any]]:
    loop = asyncio.get_running_loop()
    log.write("opened", what="async", loop=type(loop).__module__)
    async with AsyncConnectionPool(named("async"), open=False, **SIZES) as pool:
        yield pool
        assert asyncio.get_running_loop() is loop
    log.write("closed", what="async")


@lifeguard.resource
def db() -> Iterator[ConnectionPool[Any]]:
    log.write("opened", what="sync")
    with ConnectionPool(named("sync"), open=False, **SIZES) as pool:
        yield pool
    log.write("closed", what="sync")


async def question(number: int) -> tuple[int, int]:
    async with adb.get().connection() as conn:
        row = await (await conn.execute(QUESTION, [number])).fetchone()
    return row[0], row[1]


@app.task(name="ask")
@lifeguard.celery.task
async def ask(number: int) -> tuple[int, int, int]:
    return *await question(number), os.getpid()


@app.task(name="ask_sync")
@lifeguard.task
def ask_sync(number: int) -> tuple[int, int, int]:
    with db.get().connection() as conn:
        row: Any = conn.execute(QUESTION, [number]).fetchone()
    return row[0], row[1], os.getpid()


@app.task(name="where")
@lifeguard.celery.task
async def where() -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    log.write("where", loop=id(loop), thread=threading.get_ident())
    return {"pid": os.getpid(), "loop": id(loop), "kind": type(loop).__module__}


# -- what Celery gives a task ---------------------------------------------------------------------


@app.task(name="request", bind=True)
@lifeguard.celery.task
async def request(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {
        "id": self.request.id,
        "name": self.name,
        "args": list(self.request.args),
        "kwargs": self.request.kwargs,
        "retries": self.request.retries,
        "directly": self.request.called_directly,
        "got": [list(args), kwargs],
    }


@app.task(name="requests", bind=True)
@lifeguard.celery.task
async def requests(self: Any, gate: str) -> tuple[str, str]:
    """Its request before and after others have run on the same loop."""
    before = self.request.id
    log.write("waiting", gate=gate)
    await asyncio.to_thread(wait_at_gate, gate)
    return before, self.request.id


@app.task(name="progress", bind=True)
@lifeguard.celery.task
async def progress(self: Any, gate: str) -> str:
    self.update_state(state="HALF", meta={"done": 50})
    log.write("waiting", gate=gate)
    await asyncio.to_thread(wait_at_gate, gate)
    return "all"


@app.task(name="fail")
@lifeguard.celery.task
async def fail(what: str) -> None:
    lifeguard.callback(log.write, "callback", what=what)
    await question(1)
    if what == "sql":
        async with adb.get().connection() as conn:
            await conn.execute("SELECT 1/0")
    raise {"value": ValueError("on purpose"), "ignore": Ignore(), "reject": Reject("no")}.get(
        what, asyncio.CancelledError("by the task itself")
    )


@app.task(name="retry", bind=True, max_retries=3)
@lifeguard.celery.task
async def retry(self: Any, times: int) -> int:
    lifeguard.callback(log.write, "callback", what="retry", id=self.request.id)
    await question(1)
    if self.request.retries < times:
        raise self.retry(countdown=0, exc=ValueError("too often"))
    log.write("retried", id=self.request.id, retries=self.request.retries)
    return int(self.request.retries)


@app.task(name="autoretry", autoretry_for=(KeyError,), retry_kwargs={"countdown": 0})
@lifeguard.celery.task
async def autoretry(name: str) -> str:
    lifeguard.callback(log.write, "callback", what="autoretry")
    log.write("try", name=name)
    await asyncio.sleep(0)
    if sum(event["name"] == name for event in log.read("try")) < 3:
        raise KeyError(name)
    return name


_seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")


@task_prerun.connect
def set_context(task: Any, args: Any, **_: Any) -> None:
    """As libraries for tracing and logging do."""
    if task.name in ("context", "leaves_context"):
        _seen.set(f"prerun of {args[0]}")


@app.task(name="context")
@lifeguard.celery.task
async def context(name: str) -> list[str]:
    return [_seen.get(), await asyncio.create_task(read_context())]


async def read_context() -> str:
    return _seen.get()


@app.task(name="leaves_context")
@lifeguard.celery.task
async def leaves_context(name: str) -> str:
    _seen.set("left by another task")
    return name


@app.task(name="meet")
@lifeguard.celery.task
async def meet(party: str, size: int) -> int:
    """Over when *size* of them run at the same time, on one loop, each with a connection."""
    async with adb.get().connection() as conn:
        await conn.execute("SELECT 1")
        log.write("met", party=party)
        async with asyncio.timeout(60):
            while sum(event["party"] == party for event in log.read("met")) < size:
                await asyncio.sleep(0.01)
    return os.getpid()


@app.task(name="outlived")
@lifeguard.celery.task
async def outlived(gate: str) -> str:
    """It starts a task of asyncio's that goes on when it is over."""

    async def goes_on() -> None:
        await asyncio.to_thread(wait_at_gate, gate)
        number, _ = await question(7)
        log.write("went on", number=number)

    _going_on.append(asyncio.create_task(goes_on()))
    return "over"


_going_on: list[asyncio.Task[None]] = []


@app.task(name="leak")
@lifeguard.celery.task
async def leak() -> int:
    """A connection that nobody gives back."""
    conn = await adb.get().getconn()
    row = await (await conn.execute("SELECT pg_backend_pid()")).fetchone()
    return int(row[0])


# -- the ends -------------------------------------------------------------------------------------


@app.task(name="wait")
@lifeguard.celery.task
async def wait(name: str) -> str:
    """In the middle of a query. Its clean-up awaits, too."""
    try:
        lifeguard.callback(log.write, "callback", what=name)
        async with adb.get().connection() as conn:
            row = await (await conn.execute("SELECT pg_backend_pid()")).fetchone()
            log.write("in the query", name=name, backend=row[0])
            await conn.execute("SELECT pg_sleep(120)")
    except asyncio.CancelledError:
        log.write("cancelled", name=name)
        raise
    finally:
        log.write("finally begins", name=name)
        await asyncio.sleep(0.05)
        number, _ = await question(5)
        log.write("finally ends", name=name, number=number)
    return name


@app.task(name="works_on")
@lifeguard.celery.task
async def works_on(name: str, gate: str) -> str:
    """A warm shutdown waits for it."""
    log.write("works on", name=name)
    await asyncio.to_thread(wait_at_gate, gate)
    number, _ = await question(3)
    log.write("worked", name=name, number=number)
    return name


@app.task(name="swallows")
@lifeguard.celery.task
async def swallows(name: str) -> str:
    """It goes on when it is cancelled: people catch too much."""
    try:
        log.write("in the query", name=name)
        await asyncio.sleep(120)
    except asyncio.CancelledError:
        log.write("cancelled", name=name)
    await asyncio.sleep(0.05)
    log.write("finally ends", name=name)
    return "went on"


@app.task(name="plain")
def plain(what: str) -> None:
    """What Celery makes of these by itself."""
    raise {"ignore": Ignore(), "reject": Reject("no")}[what]
