"""A lock that another thread holds at the moment of the fork is held for ever in the child: the
thread is not there to let it go. Each of these hangs, if it hangs, within a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool, ConnectionPool

import lifeguard
from lifeguard._core import lifetime
from lifeguard._core.shield import Latch
from tests.core.helpers import in_fork
from tests.forks.asking import aask, ask


@pytest.fixture
def guard() -> Iterator[lifeguard.Lifeguard]:
    guard = lifeguard.Lifeguard(handle_sigterm=False, grace=3, open_timeout=10)
    yield guard
    guard._worker.end()


@pytest.fixture
def pool(dsn: str) -> ConnectionPool[Any]:
    return ConnectionPool(dsn, open=False, min_size=1, max_size=2, timeout=10)


@contextlib.contextmanager
def held(lock: Any) -> Iterator[None]:
    """*lock*, held by another thread until the end of the block."""
    has_it, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            has_it.set()
            assert let_go.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert has_it.wait(10)
        yield
    finally:
        let_go.set()
        thread.join(10)


LOCKS = {
    "guard": lambda guard, pool: guard._lock,
    "gate": lambda guard, pool: lifetime._gate,
    "pool": lambda guard, pool: pool._lock,
    "scheduler": lambda guard, pool: pool._sched._lock,
    "queue": lambda guard, pool: pool._tasks.mutex,
    "logging": lambda guard, pool: logging.getLogger("lifeguard.worker").handlers[0].lock,
}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_that_is_held(name: str, guard: lifeguard.Lifeguard, pool: Any) -> None:
    """The child opens its own worker, asks, says what it has to say, and closes. The parent goes
    on with the connection it had."""
    handler = logging.StreamHandler(io.StringIO())
    logger = logging.getLogger("lifeguard.worker")
    logger.addHandler(handler)

    def child() -> list[Any]:
        with guard.worker(resources=[pool]), guard.unit():
            asked, backend = ask(pool, 7)
        guard._worker.close()
        return [asked, backend, handler.stream.getvalue()]

    try:
        with guard.worker(resources=[pool]):
            _, mine = ask(pool, 1)
            with held(LOCKS[name](guard, pool)):
                asked, theirs, said = in_fork(child)
            assert asked == 7
            assert theirs != mine
            assert said.count("was open in process") == 1
            assert ask(pool, 8) == (8, mine)
    finally:
        logger.removeHandler(handler)


def test_a_latch_that_nobody_will_set(guard: lifeguard.Lifeguard, pool: Any) -> None:
    """Another thread opens the worker, or closes it, when this one forks: the child does not wait
    for that to end, as it never does there."""
    opening, go_on = threading.Event(), threading.Event()
    closing, close_on = threading.Event(), threading.Event()
    parent = os.getpid()

    @guard.resource
    def slow() -> Iterator[int]:
        if os.getpid() == parent:
            opening.set()
            assert go_on.wait(60)
        yield 1
        if os.getpid() == parent:
            closing.set()
            assert close_on.wait(60)

    def work() -> None:
        with guard.worker(resources=[pool]):
            ask(pool, 1)

    def child() -> list[Any]:
        async def main() -> int:
            async with guard.worker(resources=[pool]), guard.unit():
                return ask(pool, 7)[0]

        return [asyncio.run(main()), isinstance(guard._worker.closed, Latch)]

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert opening.wait(20)
        assert in_fork(child) == [7, True]
        go_on.set()
        assert closing.wait(20)
        assert in_fork(child) == [7, True]
    finally:
        go_on.set()
        close_on.set()
        thread.join(20)
    assert not thread.is_alive()


def test_a_connection_whose_lock_is_held(guard: lifeguard.Lifeguard, dsn: str) -> None:
    """A thread is in the middle of a query, which holds the connection's lock. In the child the
    connection refuses at once, instead of waiting for it."""
    with psycopg.connect(dsn, autocommit=True) as conn, guard.worker(resources=[conn]):

        def child() -> str:
            with pytest.raises(lifeguard.WrongProcessError) as caught:
                conn.commit()
                conn.execute("SELECT 1")
            return str(caught.value)

        with held(conn.lock):
            assert "belongs to process" in in_fork(child)
        assert conn.execute("SELECT 2").fetchone() == (2,)


def test_an_event_loop_that_runs_in_another_thread(guard: lifeguard.Lifeguard, dsn: str) -> None:
    """An async pool whose lock is held by a task, in a loop that runs elsewhere: the child runs a
    loop of its own, on the same pool."""
    pool = AsyncConnectionPool(dsn, open=False, min_size=1, max_size=2, timeout=10)
    ready, over = threading.Event(), threading.Event()
    backends: list[int] = []

    async def serve() -> None:
        async with guard.worker(resources=[pool]), guard.unit():
            backends.append((await aask(pool, 1))[1])
            async with pool._lock:
                ready.set()
                while not over.is_set():
                    await asyncio.sleep(0.01)
            assert await aask(pool, 2) == (2, backends[0])

    def child() -> Any:
        async def main() -> Any:
            async with guard.worker(resources=[pool]), guard.unit():
                return await aask(pool, 7)

        return asyncio.run(main())

    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(asyncio.run, serve())
        try:
            assert ready.wait(20)
            asked, theirs = in_fork(child)
        finally:
            over.set()
        running.result(20)
    assert asked == 7
    assert theirs != backends[0]


def test_forks_while_other_threads_work(
    guard: lifeguard.Lifeguard, pool: Any, dsn: str, eventlog: Any
) -> None:
    """Threads borrow, return, connect and log all the time; this one forks twenty times in the
    midst of it. No child hangs, no answer is wrong on either side."""
    over = threading.Event()
    stream = logging.StreamHandler(io.StringIO())
    logger = logging.getLogger("lifeguard.tests.forks")
    logger.propagate = False
    logger.addHandler(stream)

    def borrow() -> int:
        asked = 0
        while not over.is_set():
            with guard.unit():
                assert ask(pool, asked)[0] == asked
            asked += 1
        return asked

    def connect() -> int:
        made = 0
        while not over.is_set():
            with psycopg.connect(dsn) as conn:
                assert conn.execute("SELECT 1").fetchone() == (1,)
            made += 1
        return made

    def log() -> int:
        written = 0
        while not over.is_set():
            logger.warning("busy")
            written += 1
        return written

    def child() -> int:
        logger.warning("in the child")
        with guard.worker(resources=[pool]), guard.unit():
            return ask(pool, 7)[0]

    with guard.worker(resources=[pool]), ThreadPoolExecutor(5) as executor:
        running = [executor.submit(job) for job in (borrow, borrow, borrow, connect, log)]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                answers = [in_fork(child, seconds=30) for _ in range(20)]
        finally:
            over.set()
        done = [future.result(20) for future in running]
    assert answers == [7] * 20
    assert all(done), f"somebody did nothing: {done}"
