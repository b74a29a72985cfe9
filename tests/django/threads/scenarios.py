"""What people do with threads in a Django project. See test_threads.py for what comes of it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application
from django.db import DataError, connection, connections, transaction
from django.http import HttpResponse
from django.urls import path

import lifeguard
from tests.django.threads.program import WITHIN, Context, insert, query

THREADS = 4


def together(work: Callable[[], Any] = query) -> Callable[[], Any]:
    """*work*, of which THREADS run at the same time: each of them is in a thread of its own."""
    barrier = threading.Barrier(THREADS)

    def meet() -> Any:
        barrier.wait(WITHIN)
        try:
            return work()
        finally:
            barrier.wait(WITHIN)

    return meet


def results(futures: list[concurrent.futures.Future[Any]]) -> list[Any]:
    return [future.result(WITHIN) for future in futures]


def rounds(executor: concurrent.futures.Executor) -> dict[str, Any]:
    """Two rounds of jobs, one in each thread. Which backends answered them?"""
    first, second = (
        results([executor.submit(meet) for meet in [together()] * THREADS]) for _ in range(2)
    )
    return {"backends": len(set(first)), "again": sorted(first) == sorted(second)}


def show_left(context: Context, **result: Any) -> None:
    context.show(lost=context.lost() if context.pooled else None, **result)


# -- threads that live on -------------------------------------------------------------------------


def executor(context: Context) -> None:
    with lifeguard.ThreadPoolExecutor(THREADS) as executor:
        show_left(context, **rounds(executor))


def foreign_executor(context: Context) -> None:
    with concurrent.futures.ThreadPoolExecutor(THREADS) as executor:
        show_left(context, **rounds(executor))


def in_threads(context: Context, work: Callable[[], Any]) -> None:
    """*work* in threads that go on with something else."""
    done, end = threading.Barrier(THREADS + 1), threading.Event()
    meet = together(work)

    def main() -> None:
        meet()
        done.wait(WITHIN)
        end.wait(WITHIN)

    threads = [threading.Thread(target=main) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    done.wait(WITHIN)
    show_left(context)
    end.set()
    for thread in threads:
        thread.join()


def unit(context: Context) -> None:
    def work() -> None:
        with lifeguard.unit():
            query()

    in_threads(context, work)


def task(context: Context) -> None:
    in_threads(context, lifeguard.task(query))


def unit_that_raises(context: Context) -> None:
    def work() -> None:
        with contextlib.suppress(KeyError), lifeguard.unit():
            query()
            raise KeyError("the work")

    in_threads(context, work)


def unit_with_an_error_of_the_database(context: Context) -> None:
    def work() -> None:
        with contextlib.suppress(DataError), lifeguard.unit():
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1/0")

    in_threads(context, work)


def job_that_raises(context: Context) -> None:
    def work() -> None:
        query()
        raise KeyError("the job")

    with lifeguard.ThreadPoolExecutor(THREADS) as executor:
        meet = together(work)
        futures = [executor.submit(meet) for _ in range(THREADS)]
        errors = [type(future.exception(WITHIN)).__name__ for future in futures]
        show_left(context, errors=errors)


async def to_thread(context: Context) -> None:
    async with lifeguard.worker():
        meet = together()
        await asyncio.gather(*(asyncio.to_thread(meet) for _ in range(THREADS)))
        await context.ashow(lost=await lost(context))


async def run_in_executor(context: Context) -> None:
    async with lifeguard.worker():
        meet = together()
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(None, meet) for _ in range(THREADS)))
        await context.ashow(lost=await lost(context))


async def not_thread_sensitive(context: Context) -> None:
    async with lifeguard.worker():
        work = sync_to_async(together(), thread_sensitive=False)
        await asyncio.gather(*(work() for _ in range(THREADS)))
        await context.ashow(lost=await lost(context))


async def to_thread_given_up(context: Context) -> None:
    """The coroutine is cancelled while its job runs. The job runs to its end, nobody waits."""
    started, go, ended = threading.Barrier(THREADS + 1), threading.Event(), threading.Semaphore(0)

    def work() -> None:
        query()
        started.wait(WITHIN)
        go.wait(WITHIN)
        query()
        ended.release()

    async with lifeguard.worker():
        jobs = [asyncio.ensure_future(asyncio.to_thread(work)) for _ in range(THREADS)]
        await asyncio.to_thread(started.wait, WITHIN)
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        go.set()
        for _ in range(THREADS):
            assert await asyncio.to_thread(ended.acquire, timeout=WITHIN)
        await context.ashow(lost=await lost(context))


async def lost(context: Context) -> int | None:
    return await asyncio.to_thread(context.lost) if context.pooled else None


async def recovers(context: Context) -> None:
    """The server ends every backend. Threads that no request comes by have to get over that."""
    answers: list[str] = []

    def ask() -> str:
        try:
            return str(query())
        except Exception as exc:
            return type(exc).__name__

    executor = concurrent.futures.ThreadPoolExecutor(THREADS)
    asyncio.get_running_loop().set_default_executor(executor)  # not one thread more
    async with lifeguard.worker():
        for _ in range(3):
            meet = together(ask)
            answers += await asyncio.gather(*(asyncio.to_thread(meet) for _ in range(THREADS)))
            terminate(context)
        await context.ashow(answers=answers)


def terminate(context: Context) -> None:
    import psycopg

    with psycopg.connect(context.dsn, autocommit=True) as conn:
        conn.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE starts_with(application_name, %s) AND pid <> pg_backend_pid()",
            [f"{context.name}default"],
        )


# -- threads that end -----------------------------------------------------------------------------


def run_threads(work: Callable[[], Any]) -> None:
    meet = together(work)
    threads = [threading.Thread(target=meet) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN)


def raw_threads(context: Context) -> None:
    run_threads(query)
    show_left(context)


def threads_that_raise(context: Context) -> None:
    threading.excepthook = lambda args: context.keep(args.exc_value)

    def work() -> None:
        query()
        raise KeyError("the thread")

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN)
    assert len(context.kept) == THREADS
    show_left(context)


def threads_whose_wrapper_is_kept(context: Context) -> None:
    run_threads(lambda: (query(), context.keep(connections["default"])))
    assert len(context.kept) == THREADS
    show_left(context)


def threads_whose_cursor_is_kept(context: Context) -> None:
    def work() -> None:
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        context.keep(cursor)

    run_threads(work)
    show_left(context)


def threads_whose_exception_is_kept(context: Context) -> None:
    def work() -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1/0")
        except Exception as exc:
            context.keep(exc)

    run_threads(work)
    show_left(context)


def threads_that_end_inside_atomic(context: Context) -> None:
    def work() -> None:
        block = transaction.atomic()
        block.__enter__()
        insert(f"{context.name}lost")

    run_threads(work)
    show_left(context)


def executor_that_ends(context: Context) -> None:
    """The standard library's, without a word of lifeguard's: its threads end with it."""
    with concurrent.futures.ThreadPoolExecutor(THREADS) as executor:
        rounds(executor)
    show_left(context)


def asyncio_run_that_ends(context: Context) -> None:
    async def main() -> None:
        meet = together()
        await asyncio.gather(*(asyncio.to_thread(meet) for _ in range(THREADS)))

    asyncio.run(main())
    show_left(context)


def daemons_at_exit(context: Context) -> None:
    """Threads that are in a query when the program ends."""

    def main() -> None:
        query()
        started.release()
        while True:
            query()

    started = threading.Semaphore(0)
    for _ in range(THREADS):
        threading.Thread(target=main, daemon=True).start()
    for _ in range(THREADS):
        assert started.acquire(timeout=WITHIN)
    context.show()


# -- whose connection it is -----------------------------------------------------------------------


def nested_units(context: Context) -> None:
    """A unit inside of another, in one thread, outside of atomic and in it."""
    value = f"{context.name}nested"
    with lifeguard.unit():
        backends = [query()]
        with lifeguard.unit():
            backends.append(query())
        backends.append(query())
        with transaction.atomic():
            backends.append(insert(value))
            with lifeguard.unit():
                backends.append(insert(value))
            lifeguard.task(insert)(value)
            backends.append(insert(value))
        backends.append(query())
    show_left(context, backends=len(set(backends)))


def unit_in_a_thread_that_has_a_connection(context: Context) -> None:
    """What was open before the unit is not the unit's to close."""
    backends = [query()]
    with lifeguard.unit():
        backends.append(query())
    backends.append(query())
    left = len(set(backends))
    connection.close()
    show_left(context, backends=left)


def unit_inside_atomic(context: Context) -> None:
    """The unit is the last thing in the block: if its end closed the connection, nobody would
    see an exception, and nothing would be committed."""
    with transaction.atomic():
        insert(f"{context.name}atomic")
        with lifeguard.unit():
            insert(f"{context.name}atomic")
    connection.close()
    show_left(context)


def unit_around_half_a_transaction(context: Context) -> None:
    """Someone begins in a unit and commits after it."""
    with lifeguard.unit():
        block = transaction.atomic()
        block.__enter__()
        insert(f"{context.name}half")
    insert(f"{context.name}half")
    block.__exit__(None, None, None)
    connection.close()
    show_left(context)


def executor_inside_atomic(context: Context) -> None:
    """Jobs, while their submitter is in a transaction. Each has its own connection."""
    value = f"{context.name}submitter"
    with lifeguard.ThreadPoolExecutor(THREADS) as executor:
        with transaction.atomic():
            mine = [insert(value)]
            others = [executor.submit(query).result(WITHIN) for _ in range(THREADS)]
            mine.append(insert(value))
        connection.close()
        show_left(context, mine=len(set(mine)), shared=bool(set(mine) & set(others)))


def done_callback(context: Context) -> None:
    """The advice of many answers: close in a callback of the future. The job is done already, so
    that the callback runs in the thread of the submitter."""
    value = f"{context.name}callback"
    with lifeguard.ThreadPoolExecutor(1) as executor:
        with transaction.atomic():
            insert(value)
            future = executor.submit(query)
            future.result(WITHIN)
            if not context.guarded:
                future.add_done_callback(lambda _: connections.close_all())
        connection.close()
        show_left(context)


def several_databases(context: Context) -> None:
    in_threads(context, lifeguard.task(lambda: (query(), query("other"))))


def database_added_later(context: Context) -> None:
    def work() -> None:
        query("late")

    with lifeguard.ThreadPoolExecutor(THREADS) as executor:
        connections.settings["late"] = connections.configure_settings(
            {"default": {}, "late": context.database("late")}
        )["late"]
        meet = together(work)
        results([executor.submit(meet) for _ in range(THREADS)])
        show_left(context)


def status(context: Context) -> None:
    """A thread that nobody guards keeps a connection. It is told, by its name."""
    from lifeguard.django import status

    end, started = threading.Event(), threading.Event()

    def main() -> None:
        query()
        started.set()
        end.wait(WITHIN)

    thread = threading.Thread(target=main, name="price-importer")
    thread.start()
    assert started.wait(WITHIN)
    threads = status()["threads"]
    end.set()
    thread.join()
    context.show(
        threads=[[entry["thread"], entry["alias"]] for entry in threads],
        after=len(status()["threads"]),
    )


# -- tasks ----------------------------------------------------------------------------------------


def async_task(context: Context) -> None:
    """ORM calls of an async task that is nobody's request."""

    @lifeguard.task
    async def work() -> None:
        await sync_to_async(query)()
        await sync_to_async(query)()

    async def main() -> None:
        async with lifeguard.worker():
            for _ in range(3):
                await work()
            await context.ashow(lost=await lost(context))

    asyncio.run(main())


# -- the error page -------------------------------------------------------------------------------


def index(request: Any) -> HttpResponse:
    query()
    raise RuntimeError("a view that fails")


def error_page(request: Any) -> HttpResponse:
    """As a template with ``request.user`` in it, which Django renders in the default executor."""
    return HttpResponse(str(query()), status=500)


urlpatterns = [path("", index)]
handler500 = error_page


async def error_pages(context: Context) -> None:
    app: Any = get_asgi_application()
    if context.guarded:
        app = lifeguard.wrap(app)
    if context.pooled:  # one after another: a request and its error page take two of the four
        statuses = [await get(app) for _ in range(THREADS)]
    else:
        statuses = await asyncio.gather(*(get(app) for _ in range(THREADS)))
    await context.ashow(lost=await lost(context), statuses=sorted(set(statuses)))


async def get(app: Any) -> int:
    sent: list[dict[str, Any]] = []
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    incoming.put_nowait({"type": "http.request", "body": b"", "more_body": False})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    # A server runs each request in a task, that is a context, of its own.
    await asyncio.create_task(app(scope, incoming.get, send))
    status: int = sent[0]["status"]
    return status


# -- what lifeguard puts into a connection --------------------------------------------------------


def wrapper_around_the_first_statement(context: Context) -> None:
    """``execute_wrapper`` of an app's own, in a block in which the connection is opened."""
    heard: list[str] = []

    def hear(execute: Any, sql: str, params: Any, many: bool, cursor: Any) -> Any:
        heard.append(sql)
        return execute(sql, params, many, cursor)

    for _ in range(2):
        with connection.execute_wrapper(hear):
            query()
        query()
        connection.close()
    context.show(heard=len(heard))


def stale(context: Context) -> None:
    """A thread connects three times, and then does nothing; a later one opens a connection."""
    from lifeguard.django import _connections, status

    _connections.STALE = 0.0
    end, started = threading.Event(), threading.Event()
    said: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record)

    def idle() -> None:
        for _ in range(3):
            connection.close()
            query()
        started.set()
        end.wait(WITHIN)

    logging.getLogger("lifeguard.leaks").addHandler(Handler())
    thread = threading.Thread(target=idle, name="price-importer")
    thread.start()
    assert started.wait(WITHIN)
    threads = status()["threads"]
    for _ in range(2):
        query()
        connection.close()
    end.set()
    thread.join()
    context.show(
        threads=[[entry["thread"], entry["alias"]] for entry in threads],
        said=[record.getMessage() for record in said],
        about=[[record.lifeguard_thread, record.lifeguard_alias] for record in said],  # type: ignore[attr-defined]
    )
