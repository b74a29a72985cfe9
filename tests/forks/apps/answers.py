"""110 questions whose answers are known: 50 in each of two children, 10 in their parent, at once.

All three ask through the very same object, which the parent opened and used before it forked.
``KIND`` says what object that is, ``WAY`` how the children are made, and ``APP_BARE`` leaves
lifeguard out. Every answer is an event: a process that hangs shows as answers that are missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import billiard
import psycopg
from psycopg_pool import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    ConnectionPool,
    NullConnectionPool,
)

import lifeguard
from tests.support.eventlog import EventLog

warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the subject

DSN = os.environ["APP_DSN"]
KIND = os.environ["KIND"]
BARE = bool(os.environ.get("APP_BARE"))

Wait = Callable[[], object]

log = EventLog.from_env()


# -- the object -----------------------------------------------------------------------------------


def bare_connection() -> Any:
    return psycopg.connect(DSN, autocommit=True)


@contextlib.asynccontextmanager
async def bare_async_connection() -> AsyncIterator[Any]:
    async with await psycopg.AsyncConnection.connect(DSN, autocommit=True) as conn:
        yield conn


def make() -> Any:
    """What is shared: a pool that is not open yet, or a function that connects."""
    least: dict[str, Any] = {"open": False, "max_size": 1, "timeout": 60}
    match KIND:
        case "sync":
            return ConnectionPool(DSN, min_size=1, **least)
        case "null":
            return NullConnectionPool(DSN, min_size=0, **least)
        case "async":
            return AsyncConnectionPool(DSN, min_size=1, **least)
        case "async-null":
            return AsyncNullConnectionPool(DSN, min_size=0, **least)
        case "connection":
            return bare_connection
        case "async-connection":
            return bare_async_connection
    raise AssertionError(KIND)


IS_ASYNC = KIND.startswith("async")
IS_POOL = "connection" not in KIND
shared: Any = make()
resource: Any = None
if not BARE:
    resource = lifeguard.resource(shared) if not IS_POOL else shared


@contextlib.contextmanager
def opened() -> Iterator[None]:
    """Have it open in the parent, as people do."""
    global shared
    if not BARE:
        with lifeguard.worker(resources=[resource]):
            yield
    elif IS_POOL:
        with shared:
            yield
    else:
        with shared() as shared:
            yield


@contextlib.asynccontextmanager
async def aopened() -> AsyncIterator[None]:
    global shared
    if not BARE:
        async with lifeguard.worker(resources=[resource]):
            yield
    elif IS_POOL:
        async with shared:
            yield
    else:
        async with shared() as shared:
            yield


def ask(number: int) -> None:
    if BARE:
        with shared.connection() if IS_POOL else contextlib.nullcontext(shared) as conn:
            note(number, conn.execute(QUESTION, [number]).fetchone())
        return
    with lifeguard.unit():
        held = contextlib.nullcontext(None if IS_POOL else resource.get())
        with shared.connection() if IS_POOL else held as conn:
            note(number, conn.execute(QUESTION, [number]).fetchone())


async def aask(number: int) -> None:
    if BARE:
        async with shared.connection() if IS_POOL else contextlib.nullcontext(shared) as conn:
            note(number, await (await conn.execute(QUESTION, [number])).fetchone())
        return
    async with lifeguard.unit():
        held = contextlib.nullcontext(None if IS_POOL else resource.get())
        async with shared.connection() if IS_POOL else held as conn:
            note(number, await (await conn.execute(QUESTION, [number])).fetchone())


QUESTION = "SELECT %s::int, pg_backend_pid()"


def note(number: int, row: Any) -> None:
    log.write("answer", right=row is not None and row[0] == number, backend=row and row[1])


# -- the processes --------------------------------------------------------------------------------


def at_once() -> None:
    """Wait until all three are here."""
    log.write("up")
    log.wait_count("up", 3, timeout=60)


def questions(first: int, count: int) -> None:
    at_once()
    for number in range(first, first + count):
        try:
            ask(number)
        except Exception as exc:
            log.write("failed", error=f"{type(exc).__name__}: {exc}")


async def aquestions(first: int, count: int) -> None:
    at_once()
    for number in range(first, first + count):
        try:
            await aask(number)
        except Exception as exc:
            log.write("failed", error=f"{type(exc).__name__}: {exc}")


def child(first: int) -> None:
    if IS_ASYNC:
        asyncio.run(aquestions(first, 50))
    else:
        questions(first, 50)


def fork() -> Wait:
    pids = []
    for first in (1000, 2000):
        pid = os.fork()
        if pid == 0:
            in_fork(first)
        pids.append(pid)
    return lambda: [os.waitpid(pid, 0) for pid in pids]


def in_fork(first: int) -> None:
    status = 1
    try:
        child(first)
        status = 0
    finally:
        log.write("over", status=status)
        os._exit(status)


def fork_in_a_thread() -> Wait:
    """The thread that forks is the only one in the child, where the pool's own are missing too."""
    thread = threading.Thread(target=lambda: fork()())
    thread.start()
    return thread.join


def fork_twice() -> Wait:
    """As a daemon does: the process in between ends, and the two below it work."""
    between = os.fork()
    if between == 0:
        try:
            fork()()
        finally:
            os._exit(0)
    return lambda: os.waitpid(between, 0)


def spawned(first: int) -> None:
    """A process that inherits nothing, so that nothing is open in it."""
    with opened():
        questions(first, 50)


def processes(context: Any, target: Callable[[int], None] = child) -> Wait:
    started = [context.Process(target=target, args=(first,)) for first in (1000, 2000)]
    for process in started:
        process.start()
    return lambda: [process.join() for process in started]


def executor() -> Wait:
    executor = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))
    for first in (1000, 2000):
        executor.submit(child, first)
    return executor.shutdown


WAYS: dict[str, Callable[[], Wait]] = {
    "os.fork": fork,
    "thread": fork_in_a_thread,
    "double": fork_twice,
    "multiprocessing-fork": lambda: processes(multiprocessing.get_context("fork")),
    "forkserver": lambda: processes(multiprocessing.get_context("forkserver"), spawned),
    "spawn": lambda: processes(multiprocessing.get_context("spawn"), spawned),
    "executor": executor,
    "billiard": lambda: processes(billiard.get_context("fork")),
}


def main() -> None:
    with opened():
        ask(-1)
        wait = WAYS[os.environ["WAY"]]()
        questions(9000, 10)
        wait()
        ask(-2)


async def amain() -> None:
    async with aopened():
        await aask(-1)
        wait = WAYS[os.environ["WAY"]]()
        await aquestions(9000, 10)
        await asyncio.to_thread(wait)
        await aask(-2)


if __name__ == "__main__":
    if IS_ASYNC:
        asyncio.run(amain())
    else:
        main()
    log.write("over", status=0)
