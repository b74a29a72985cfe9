"""How people run code in threads: each way bare, and with the line of lifeguard's that it needs.

A way is a context manager. What it yields runs jobs and returns when all of them have ended, in
whatever result; its threads live on until the block ends, unless the way is one whose threads end.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import os
import queue
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any

import anyio.to_thread

import lifeguard
from tests.threads.kinds import KINDS, JobFailed, Kind

WITHIN = 60.0
THREADS = 16

Run = Callable[[Iterable[int]], None]
ARun = Callable[[Iterable[int]], Awaitable[None]]


class Cell:
    """The jobs of one kind, run in one way, and what became of them."""

    def __init__(self, kind: Kind, threads: int = THREADS) -> None:
        self.kind = kind
        self.guarded = kind.guarded
        self.threads = threads
        # Bare, a pool serves nobody any more as soon as so many jobs have failed.
        self.one_fails_in = 4 if self.guarded else 1 if kind.pooled else 2
        self.aging = False
        self.outcomes: Counter[str] = Counter()
        self.backends: set[int] = set()
        self.kept: list[object] = []
        self._meeting = threading.Barrier(threads)
        self._lock = threading.Lock()

    def job(self, number: int) -> int:
        """The job. The first ones meet: each of them is in a thread of its own."""
        try:
            if number < self.threads:
                self._meeting.wait(WITHIN)
            if self.aging:
                self.kind.age()
            backend = self.kind.work(fail=number % self.one_fails_in == 0)
        except Exception as exc:
            self.note(type(exc).__name__)
            if isinstance(exc, JobFailed):
                self.backends.add(exc.args[0])
            raise
        self.note("done")
        self.backends.add(backend)
        return backend

    def note(self, outcome: str) -> None:
        with self._lock:
            self.outcomes[outcome] += 1

    def quiet_job(self, number: int) -> None:
        """For ways in which an exception would end the thread."""
        with contextlib.suppress(Exception):
            self.job(number)

    def task(self, job: Callable[[int], Any]) -> Callable[[int], Any]:
        return lifeguard.task(job) if self.guarded else job

    @contextlib.contextmanager
    def worker(self, timeout: float) -> Iterator[None]:
        resources = self.kind.open(timeout)
        if self.guarded:
            with lifeguard.worker(resources=resources):
                yield
        else:
            try:
                yield
            finally:
                self.kind.close()

    @contextlib.asynccontextmanager
    async def aworker(self, timeout: float) -> AsyncIterator[None]:
        resources = self.kind.open(timeout)
        if self.guarded:
            async with lifeguard.worker(resources=resources):
                yield
        else:
            try:
                yield
            finally:
                self.kind.close()


# -- plain threads -----------------------------------------------------------------------------


@contextlib.contextmanager
def threads_with(cell: Cell, job: Callable[[int], object]) -> Iterator[Run]:
    """Threads that take their jobs out of a queue."""
    todo: queue.Queue[int | None] = queue.Queue()

    def main() -> None:
        while (number := todo.get()) is not None:
            with contextlib.suppress(Exception):
                job(number)
            todo.task_done()

    threads = [threading.Thread(target=main, daemon=True) for _ in range(cell.threads)]
    for thread in threads:
        thread.start()

    def run(numbers: Iterable[int]) -> None:
        for number in numbers:
            todo.put(number)
        with todo.all_tasks_done:
            assert todo.all_tasks_done.wait_for(lambda: not todo.unfinished_tasks, WITHIN)

    yield run
    for _ in threads:
        todo.put(None)
    for thread in threads:
        thread.join(WITHIN)


def unit_in_a_thread(cell: Cell) -> Any:
    def in_a_unit(number: int) -> None:
        with lifeguard.unit():
            cell.job(number)

    return threads_with(cell, in_a_unit if cell.guarded else cell.job)


def task_in_a_thread(cell: Cell) -> Any:
    return threads_with(cell, cell.task(cell.job))


@contextlib.contextmanager
def timers(cell: Cell) -> Iterator[Run]:
    """Each job has a thread of its own, which ends with it."""
    job = cell.task(cell.quiet_job)

    def run(numbers: Iterable[int]) -> None:
        rest = list(numbers)
        while rest:
            some, rest = rest[: cell.threads], rest[cell.threads :]
            started = [threading.Timer(0, job, [number]) for number in some]
            for timer in started:
                timer.start()
            for timer in started:
                timer.join(WITHIN)

    yield run


# -- executors ---------------------------------------------------------------------------------


@contextlib.contextmanager
def running(cell: Cell, executor: concurrent.futures.Executor) -> Iterator[Run]:
    def run(numbers: Iterable[int]) -> None:
        futures = [executor.submit(cell.job, number) for number in numbers]
        _, late = concurrent.futures.wait(futures, WITHIN)
        assert not late
        cell.kept.extend(futures)  # and with them the exceptions, and their frames

    with executor:
        yield run


def executor(cell: Cell) -> Any:
    module: Any = lifeguard if cell.guarded else concurrent.futures
    return running(cell, module.ThreadPoolExecutor(cell.threads))


def executor_of_others(cell: Cell) -> Any:
    made = concurrent.futures.ThreadPoolExecutor(cell.threads)
    if cell.guarded:
        from lifeguard.threads import guard_executor

        guard_executor(made)
    return running(cell, made)


# -- event loops -------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def in_a_loop(cell: Cell, start: Callable[[int], Awaitable[object]]) -> AsyncIterator[ARun]:
    async def run(numbers: Iterable[int]) -> None:
        async with asyncio.timeout(WITHIN):
            results = await asyncio.gather(*map(start, numbers), return_exceptions=True)
        cell.kept.extend(results)

    yield run


def to_thread(cell: Cell) -> Any:
    executor = concurrent.futures.ThreadPoolExecutor(cell.threads)
    asyncio.get_running_loop().set_default_executor(executor)
    return in_a_loop(cell, lambda number: asyncio.to_thread(cell.job, number))


def run_in_default_executor(cell: Cell) -> Any:
    loop = asyncio.get_running_loop()
    return in_a_loop(cell, lambda number: loop.run_in_executor(None, cell.job, number))


@contextlib.asynccontextmanager
async def run_in_executor(cell: Cell) -> AsyncIterator[ARun]:
    loop = asyncio.get_running_loop()
    module: Any = lifeguard if cell.guarded else concurrent.futures
    with module.ThreadPoolExecutor(cell.threads) as executor:
        start = lambda number: loop.run_in_executor(executor, cell.job, number)  # noqa: E731
        async with in_a_loop(cell, start) as run:
            yield run


def anyio_to_thread(cell: Cell) -> Any:
    """As in a request: what it borrows from a pool is back when the unit is over that awaits it."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = cell.threads

    async def start(number: int) -> None:
        if not cell.guarded:
            await anyio.to_thread.run_sync(cell.job, number)
            return
        async with lifeguard.unit():
            await anyio.to_thread.run_sync(cell.job, number)

    return in_a_loop(cell, start)


# -- def endpoints -----------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def served(cell: Cell, app: Any, resources: list[object]) -> AsyncIterator[ARun]:
    """*app* on a real server, in this loop, and clients beside it."""
    import uvicorn

    from tests.incidents.seeds.deploying import Answer, Client, at_a_time

    anyio.to_thread.current_default_thread_limiter().total_tokens = cell.threads
    if cell.guarded:
        app = lifeguard.wrap(app, resources=resources)
    config = uvicorn.Config(app, lifespan="on", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    port: int = listening.getsockname()[1]
    serving = asyncio.create_task(server.serve([listening]))
    async with asyncio.timeout(WITHIN):
        while not server.started:
            assert not serving.done(), "the server did not start"
            await asyncio.sleep(0.01)

    def asking(number: int) -> Callable[[Client], Awaitable[Answer]]:
        async def ask(_: Client) -> Answer:
            async with Client(port) as client:  # uvicorn hangs up after an error
                return await client.get(f"/job/{number}")

        return ask

    async def run(numbers: Iterable[int]) -> None:
        answers = await at_a_time(cell.threads, [asking(number) for number in numbers], port)
        assert {answer.status for answer in answers} <= {200, 500}, answers

    try:
        yield run
    finally:
        server.should_exit = True
        await serving
        if not cell.guarded:
            cell.kind.close()


def fastapi_endpoint(cell: Cell, timeout: float) -> Any:
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/job/{number}")
    def endpoint(number: int) -> int:
        return cell.job(number)

    return served(cell, app, cell.kind.open(timeout))


def starlette_route(cell: Cell, timeout: float) -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    def endpoint(request: Request) -> Response:
        return PlainTextResponse(str(cell.job(int(request.path_params["number"]))))

    app = Starlette(routes=[Route("/job/{number}", endpoint)])
    return served(cell, app, cell.kind.open(timeout))


# -- APScheduler -------------------------------------------------------------------------------

_cell: Cell | None = None


def named_job(number: int) -> int:
    """The job, where it has to be found by its name."""
    assert _cell is not None
    return _cell.job(number)


@lifeguard.task
def named_task(number: int) -> int:
    return named_job(number)


REQUEST = "THREADS_REQUEST"
"""Where a spawned process finds what kind of connection it is about."""

_kind: Kind | None = None


def process_job(number: int) -> tuple[str, int]:
    """The job in a process that has imported nothing but this module."""
    assert _kind is not None
    try:
        return "done", _kind.work(fail=number % 4 == 0)
    except JobFailed as failed:
        return "JobFailed", failed.args[0]


@lifeguard.task
def process_task(number: int) -> tuple[str, int]:
    return process_job(number)


def start_process() -> None:
    """Each process of the executor begins with this, as a project does with ``django.setup``."""
    global _kind
    silence()
    request = json.loads(os.environ[REQUEST])
    _kind = KINDS[request["kind"]](request["dsn"], request["appname"], request["guarded"])
    _kind.prepare()


@contextlib.contextmanager
def scheduler3(cell: Cell, executor: Any, job: Callable[[int], Any]) -> Iterator[Run]:
    """Version 3: a BackgroundScheduler, whose jobs run in its executor."""
    from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED
    from apscheduler.schedulers.background import BackgroundScheduler

    scheduler = BackgroundScheduler(executors={"default": executor})
    ended = threading.Semaphore(0)

    def on_end(event: Any) -> None:
        if isinstance(event.retval, tuple):  # of a process, whose cell is not ours
            outcome, backend = event.retval
            cell.note(outcome)
            if backend:
                cell.backends.add(backend)
        ended.release()

    scheduler.add_listener(on_end, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
    scheduler.start()

    def run(numbers: Iterable[int]) -> None:
        jobs = list(numbers)
        for number in jobs:
            scheduler.add_job(job, args=[number], misfire_grace_time=None)
        for _ in jobs:
            assert ended.acquire(timeout=WITHIN)

    try:
        yield run
    finally:
        scheduler.shutdown()


def apscheduler_threads(cell: Cell) -> Any:
    from apscheduler.executors.pool import ThreadPoolExecutor

    return scheduler3(cell, ThreadPoolExecutor(cell.threads), cell.task(cell.job))


def apscheduler_processes(cell: Cell) -> Any:
    from apscheduler.executors.pool import ProcessPoolExecutor

    kind = cell.kind
    request = {"kind": kind.name, "dsn": kind.dsn, "appname": kind.appname, "guarded": cell.guarded}
    os.environ[REQUEST] = json.dumps(request)
    processes = ProcessPoolExecutor(cell.threads, pool_kwargs={"initializer": start_process})
    return scheduler3(cell, processes, process_task if cell.guarded else process_job)


@contextlib.contextmanager
def apscheduler4(cell: Cell) -> Iterator[Run]:
    """Version 4: a Scheduler with an event loop of its own, whose jobs run in anyio's threads."""
    from apscheduler import JobReleased, Scheduler

    global _cell
    _cell = cell
    ended = threading.Semaphore(0)
    with Scheduler(max_concurrent_jobs=cell.threads) as scheduler:
        scheduler.subscribe(lambda event: ended.release(), {JobReleased})
        job = named_task if cell.guarded else named_job
        scheduler.configure_task("job", func=job, job_executor="threadpool", max_running_jobs=None)
        scheduler.start_in_background()

        def run(numbers: Iterable[int]) -> None:
            jobs = list(numbers)
            for number in jobs:
                scheduler.add_job("job", args=[number])
            for _ in jobs:
                assert ended.acquire(timeout=WITHIN)

        yield run


# -- the table ---------------------------------------------------------------------------------

SYNC: dict[str, Callable[[Cell], Any]] = {
    "unit() in a thread": unit_in_a_thread,
    "@task in a thread": task_in_a_thread,
    "threading.Timer": timers,
    "ThreadPoolExecutor": executor,
    "an executor of others": executor_of_others,
    "APScheduler 3": apscheduler_threads,
    "APScheduler 3, processes": apscheduler_processes,
    "APScheduler 4": apscheduler4,
}
ASYNC: dict[str, Callable[[Cell], Any]] = {
    "asyncio.to_thread": to_thread,
    "run_in_executor(None)": run_in_default_executor,
    "run_in_executor(executor)": run_in_executor,
    "anyio.to_thread": anyio_to_thread,
}
SERVED: dict[str, Callable[[Cell, float], Any]] = {
    "FastAPI def endpoint": fastapi_endpoint,
    "Starlette def route": starlette_route,
}
WAYS = [*SYNC, *ASYNC, *SERVED]

THREADS_END = {"threading.Timer"}
"""Ways whose threads end with their jobs, so that nothing is left for a thread to keep."""


def threads_of(way: str) -> int:
    if way == "run_in_executor(None)":  # as many as the loop's own executor has
        return concurrent.futures.ThreadPoolExecutor()._max_workers
    return 2 if way == "APScheduler 3, processes" else THREADS


def silence() -> None:
    """Of the jobs that fail on purpose."""
    for name in ("apscheduler", "uvicorn", "uvicorn.error", "lifeguard.leaks", "django"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
