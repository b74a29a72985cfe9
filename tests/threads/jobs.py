"""Moments of single jobs: given up by who waited, seen by a callback, called in a transaction.

Each is given its column and an empty cell, and notes what it found. They run in the same programs
as the ways do.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import threading
from collections.abc import Callable
from typing import Any

import lifeguard
from tests.threads.kinds import JobFailed
from tests.threads.ways import WITHIN, Cell

THREADS = 20


def forget(cell: Cell) -> None:
    """Borrow, fail, and let somebody keep the exception: nothing comes back by itself."""
    try:
        cell.kind.work(fail=True)
    except JobFailed as exc:
        cell.kept.append(exc)


async def given_up(column: Any, cell: Cell, found: dict[str, Any]) -> None:
    """``wait_for`` gives a job in a thread up. The job runs on to its end."""
    started, go = threading.Event(), threading.Event()

    def job() -> None:
        forget(cell)
        started.set()
        go.wait(WITHIN)

    async with cell.aworker(column.timeout):
        task = asyncio.create_task(asyncio.to_thread(job))
        assert await asyncio.to_thread(started.wait, WITHIN)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(task, 0)
        found["given_up"] = task.cancelled()
        found["during"] = column.out(bare=1, guarded=1)
        go.set()
        found["later"] = column.out(bare=1, guarded=0)


def done_callback(column: Any, cell: Cell, found: dict[str, Any]) -> None:
    """What a callback of the job's future sees, in the job's own thread."""
    go, called = threading.Event(), threading.Event()

    def job() -> int:
        go.wait(WITHIN)
        forget(cell)
        return threading.get_ident()

    def on_done(future: concurrent.futures.Future[int]) -> None:
        found["own_thread"] = future.result() == threading.get_ident()
        found["seen"] = column.out(bare=1, guarded=0)
        called.set()

    module: Any = lifeguard if cell.guarded else concurrent.futures
    with cell.worker(column.timeout), module.ThreadPoolExecutor(1) as executor:
        future = executor.submit(job)
        future.add_done_callback(on_done)
        go.set()
        assert called.wait(WITHIN)


def inline(column: Any, cell: Cell, found: dict[str, Any]) -> None:
    """A job that is simply called, as the last thing in a transaction of its caller's.

    Bare, it cleans up after itself as the usual advice for threads says.
    """
    value = f"{column.appname}inline"

    def job() -> None:
        with cell.kind.transaction() as insert:
            insert(value)
        if not cell.guarded:
            cell.kind.clean_up_naively()

    task = cell.task(job)
    with cell.worker(column.timeout):
        with cell.kind.transaction() as insert:
            insert(value)
            task()
        found["alone"] = column.rows(value)
        if cell.guarded:
            with lifeguard.unit():
                with cell.kind.transaction() as insert:
                    insert(value)
                    task()
                found["in_a_unit"] = column.rows(value) - found["alone"]
                found["out"] = column.out(bare=0, guarded=cell.kind.kept_by_a_unit)


# -- what threads leave to the garbage collector -----------------------------------------------


def in_threads(work: Callable[[], object]) -> None:
    """In twenty threads at once, which end."""
    meeting = threading.Barrier(THREADS)

    def main() -> None:
        meeting.wait(WITHIN)
        work()
        meeting.wait(WITHIN)

    threads = [threading.Thread(target=main) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN)


def look(column: Any, found: dict[str, Any], expected: int = 0) -> None:
    """Right after, and when the garbage collector has come."""
    found["right_after"] = column.connections(0 if column.guarded else THREADS)
    gc.collect()
    found["collected"] = column.connections(0 if column.guarded else expected)


def ended(column: Any, cell: Cell, found: dict[str, Any]) -> None:
    in_threads(lambda: cell.kind.work(fail=False))
    look(column, found)


def exception_kept(column: Any, cell: Cell, found: dict[str, Any]) -> None:
    """Of a statement that failed: its frames have the cursor in them."""

    def work() -> None:
        from django.db import Error, connection

        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1/0")
        except Error as exc:
            cell.kept.append(exc)

    in_threads(work)
    look(column, found, THREADS)


def future_kept(column: Any, cell: Cell, found: dict[str, Any]) -> None:
    """Of an executor of the standard library that is over."""

    def work() -> None:
        from django.db import connection

        meeting.wait(WITHIN)
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1/0")

    meeting = threading.Barrier(THREADS)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as executor:
        cell.kept.extend(executor.submit(work) for _ in range(THREADS))
    look(column, found, THREADS)


def cursor_kept(column: Any, cell: Cell, found: dict[str, Any]) -> None:
    def work() -> None:
        from django.db import connection

        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        cell.kept.append(cursor)

    in_threads(work)
    look(column, found, THREADS)


def wrapper_kept(column: Any, cell: Cell, found: dict[str, Any]) -> None:
    def work() -> None:
        from django.db import connections

        cell.kind.work(fail=False)
        cell.kept.append(connections["default"])

    in_threads(work)
    look(column, found, THREADS)


def executor_kept(column: Any, cell: Cell, found: dict[str, Any]) -> None:
    """An executor that nobody shuts down, as one in a module is: its threads live on."""
    module: Any = lifeguard if cell.guarded else concurrent.futures
    executor = module.ThreadPoolExecutor(THREADS)
    meeting = threading.Barrier(THREADS)

    def work() -> None:
        meeting.wait(WITHIN)
        cell.kind.work(fail=False)

    futures = [executor.submit(work) for _ in range(THREADS)]
    concurrent.futures.wait(futures, WITHIN)
    look(column, found, THREADS)
    executor.shutdown()


JOBS: dict[str, Callable[..., Any]] = {
    "given up": given_up,
    "done callback": done_callback,
    "inline": inline,
}
LEFT_TO_THE_COLLECTOR: dict[str, Callable[..., Any]] = {
    "thread that ended": ended,
    "exception kept": exception_kept,
    "failed future kept": future_kept,
    "cursor kept": cursor_kept,
    "wrapper kept": wrapper_kept,
    "executor kept": executor_kept,
}
MOMENTS = JOBS | LEFT_TO_THE_COLLECTOR
