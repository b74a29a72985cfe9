"""Async work where nobody runs an event loop: one loop per process, in a thread of its own.

A task queue's worker calls its tasks one by one, without a loop. A loop per call would open
everything anew each time, and a pool that was opened on a loop that is gone can neither grow nor
close. So there is one loop, which starts with the first async work, has the worker and its async
resources open on it, and ends with the process. It is a plain asyncio loop: asyncio cancels by
edge, and a driver can then tell the server to stop the query, and wait for that.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import threading
from _thread import allocate_lock

from ._core import ends, fork
from ._core.errors import LifeguardError
from ._core.lifetime import OPEN, describe
from ._core.observer import logger
from ._core.shield import Latch, running_loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from ._core.guard import Guard
    from ._core.worker import Worker

LOOK = 0.1
"""Seconds between two looks around: a signal that comes just before a wait does not wake it."""


def begin_worker(guard: Guard) -> None:
    """This process works for a task queue: what is async in it may open, on a loop of its own."""
    guard.home = loop_thread(guard)


def end_worker(guard: Guard) -> None:
    """The task queue stops working here, and the process may live on (a worker inside of a test).

    What only its tasks had opened closes.
    """
    worker = guard._worker
    if worker.state is OPEN and not worker.holders:
        loop_thread(guard).end()
        worker.end()
    guard.home = None


def green() -> str | None:
    """Which library has replaced this process's threads, if one has: no loop can run then."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("threading"):
        return "gevent"
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        return "eventlet"
    return None


def _refuse_green(what: str) -> None:
    name = green()
    if name is not None:
        raise LifeguardError(
            f"{what} is async and cannot run under {name}, which replaces the threads that an "
            "event loop needs: work in threads or processes instead (for Celery: --pool threads "
            "or prefork), or make it a sync one"
        )


def loop_thread(guard: Guard) -> LoopThread:
    """The loop of *guard* in this process. Nothing is started before it is used."""
    found = _threads.get(guard.key)
    if found is None:
        found = _threads.setdefault(guard.key, LoopThread(guard))
    return found


class LoopThread:
    """An event loop in a thread, where a guard's worker is open."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = allocate_lock()
        self._jobs: set[_Job] = set()
        self._stop: asyncio.Event
        fork.watch(self)

    def worker(self) -> Worker:
        """The guard's worker, opened on this loop if it is not open."""
        if self.loop is None and (first := [each for each in self.guard._defined if each.awaits]):
            _refuse_green(str(first[0]))
        worker: Worker = self._call(self.guard.aacquire, (), {"hold": False})
        ends.register(self)  # after the worker, so that this ends first
        if worker.loop is not self.loop and any(each.awaits for each in worker.values):
            raise LifeguardError(
                "the async resources of this process are open on another event loop, its "
                "server's: code that runs on that loop can use them. Send this work to a worker "
                "of its own, or await it there"
            )
        return worker

    def run(
        self, func: Callable[..., Coroutine[Any, Any, Any]], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Await ``func(*args, **kwargs)`` on the loop. This thread waits for its end.

        What interrupts the wait (a time limit, a signal) cancels the coroutine, and goes on when
        that has ended, or when the guard's grace is over. Raises :exc:`LifeguardError` where an
        event loop is running in this thread, which the wait would block.
        """
        if running_loop() is not None:
            raise LifeguardError(
                f"{describe(func)} would block the event loop that runs in this thread: await the "
                "async function itself, or send it to a worker"
            )
        if self.loop is None:
            _refuse_green(describe(func))
        worker = self.guard._worker
        if not worker.serving or worker.loop is not self.loop or self.loop is None:
            self.worker()
        return self._call(func, args, kwargs)

    def _call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        loop = self._started()
        job = _Job(func, args, kwargs, self._jobs)
        try:
            loop.call_soon_threadsafe(job.start)
            while not job.over.wait(LOOK):
                pass
        except BaseException:
            self._cancel(loop, job)
            raise
        try:
            return job.result()
        finally:
            del job  # its error has a traceback, which has this frame

    def _cancel(self, loop: asyncio.AbstractEventLoop, job: _Job) -> None:
        loop.call_soon_threadsafe(job.cancel)
        if not job.over.wait(max(self.guard.grace, LOOK)):
            logger("unit").error(
                "%s was cancelled and did not end within %.3g seconds: it goes on behind its "
                "task's back. Look for an `except BaseException` or a `finally` that awaits.",
                describe(job.func),
                self.guard.grace,
            )

    def _started(self) -> asyncio.AbstractEventLoop:
        loop = self.loop
        if loop is not None:
            return loop
        with self._lock:
            if self.loop is None:
                started = threading.Event()
                thread = threading.Thread(
                    target=self._main, args=(started,), name="lifeguard loop", daemon=True
                )
                thread.start()
                started.wait()
                self._thread = thread
                ends.register(self)
            assert self.loop is not None
            return self.loop

    def _main(self, started: threading.Event) -> None:
        with asyncio.Runner() as runner:
            runner.run(self._stay(started))

    async def _stay(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        started.set()
        await self._stop.wait()

    # -- the end -------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        return False

    def end(self) -> None:
        """Cancel what runs, close the worker, and end the thread."""
        loop, thread = self.loop, self._thread
        if loop is None or thread is None or thread is threading.current_thread():
            return
        running = list(self._jobs)
        for job in running:
            loop.call_soon_threadsafe(job.cancel)
        for job in running:
            job.over.wait(max(self.guard.grace, LOOK))
        if self.guard._worker.loop is loop:
            self.guard._worker.end()
        self.loop = self._thread = None
        loop.call_soon_threadsafe(self._stop.set)
        thread.join(max(self.guard.grace, LOOK))

    def after_fork(self) -> None:
        """In a forked child: the thread does not run here."""
        fork.keep((self.loop, self._thread, self._jobs))
        self.loop = self._thread = None
        self._lock = allocate_lock()  # it may have been held
        self._jobs = set()


_threads: dict[str, LoopThread] = {}


class _Job:
    """One coroutine, and the thread that waits for its end."""

    __slots__ = ("args", "began", "error", "func", "jobs", "kwargs", "over", "task", "value")

    def __init__(self, func: Any, args: Any, kwargs: dict[str, Any], jobs: set[_Job]) -> None:
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.jobs = jobs
        self.over = Latch()
        self.began = False
        self.task: asyncio.Task[None] | None = None
        self.value: Any = None
        self.error: BaseException | None = None

    def start(self) -> None:
        """Called on the loop, in a copy of the context of the thread that waits."""
        self.jobs.add(self)
        self.task = asyncio.get_running_loop().create_task(self._run())

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()
        if not self.began:  # and never will: nothing of it runs, not even a `finally`
            self.error = asyncio.CancelledError()
            self._is_over()

    def _is_over(self) -> None:
        self.jobs.discard(self)
        self.over.set()

    async def _run(self) -> None:
        self.began = True
        # A SystemExit that leaves a task would stop the loop, with everybody's work on it.
        try:
            self.value = await self.func(*self.args, **self.kwargs)
        except BaseException as exc:
            self.error = exc
        finally:
            self._is_over()

    def result(self) -> Any:
        error, self.error = self.error, None
        if error is None:
            return self.value
        try:
            if isinstance(error, asyncio.CancelledError):  # which nothing here would catch
                raise concurrent.futures.CancelledError(*error.args) from error
            raise error
        finally:
            del error
