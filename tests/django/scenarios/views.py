"""A view for each way in which Django under ASGI leaves connections behind.

Each view asks the database for something, and most of them do nothing else that matters. Where a
test has to step in, the view says "working" in the log and waits at its gate.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse

from tests.django.scenarios.witness import await_gate, note, wait_at_gate

THREADS = 8
"""Of the executor that belongs to this module."""
CHUNKS = 5

executor = ThreadPoolExecutor(THREADS)


def count() -> int:
    """How many connections this server has, says PostgreSQL."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s",
            [os.environ["APP_NAME"]],
        )
        return int(cursor.fetchone()[0])


async def acount() -> int:
    """The same by Django's own way into a thread, which the async ORM takes."""
    from tests.django.scenarios.models import Database

    assert await Database.objects.aget(datname=settings.DATABASES["default"]["NAME"])
    return await sync_to_async(count)()


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(count()))


async def aplain(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(await acount()))


_meetings: dict[str, threading.Barrier] = {}


def meet(request: HttpRequest) -> HttpResponse:
    """Hold a connection until as many others do as there may be."""
    with transaction.atomic():
        count()
        meeting = _meetings.setdefault(request.GET["at"], threading.Barrier(settings.LANES))
        meeting.wait(10)
    return HttpResponse("met")


# -- the client leaves ----------------------------------------------------------------------------


def waits(request: HttpRequest) -> HttpResponse:
    count()
    note("working")
    wait_at_gate()
    count()
    note("left")
    return HttpResponse("done")


async def awaits(request: HttpRequest) -> HttpResponse:
    await acount()
    note("working")
    try:
        await await_gate()
    finally:
        await acount()
        note("left")
    return HttpResponse("done")


# -- other threads --------------------------------------------------------------------------------


async def to_thread(request: HttpRequest) -> HttpResponse:
    await asyncio.gather(*(asyncio.to_thread(count) for _ in range(8)))
    await sync_to_async(count, thread_sensitive=False)()
    return HttpResponse("done")


def module_executor(request: HttpRequest) -> HttpResponse:
    for job in [executor.submit(count) for _ in range(THREADS)]:
        job.result()
    return HttpResponse("done")


def raw_thread(request: HttpRequest) -> HttpResponse:
    thread = threading.Thread(target=count)
    thread.start()
    thread.join()
    return HttpResponse("done")


# -- streams --------------------------------------------------------------------------------------


def stream(request: HttpRequest) -> StreamingHttpResponse:
    def chunks() -> Iterator[str]:
        for _ in range(CHUNKS):
            yield f"{count()}\n"
            if "stays" in request.GET:
                note("working")
                wait_at_gate()

    return StreamingHttpResponse(chunks())


async def astream(request: HttpRequest) -> StreamingHttpResponse:
    async def chunks() -> AsyncIterator[str]:
        for _ in range(CHUNKS):
            yield f"{await acount()}\n"
            if "stays" in request.GET:
                note("working")
                await await_gate()

    return StreamingHttpResponse(chunks())


async def astream_raises(request: HttpRequest) -> StreamingHttpResponse:
    async def chunks() -> AsyncIterator[str]:
        yield f"{await acount()}\n"
        raise RuntimeError("as asked")

    return StreamingHttpResponse(chunks())


async def events(request: HttpRequest) -> StreamingHttpResponse:
    """What a tab shows that is left open."""

    async def chunks() -> AsyncIterator[str]:
        yield f"data: {await acount()}\n\n"
        note("working")
        await await_gate()

    return StreamingHttpResponse(chunks(), content_type="text/event-stream")


# -- what belongs together ------------------------------------------------------------------------


async def cursor(request: HttpRequest) -> HttpResponse:
    """A server-side cursor, and the loop is left to others between its rows."""
    from tests.django.scenarios.models import Database

    names = []
    async for row in Database.objects.order_by("datname").aiterator(chunk_size=1):
        names.append(row.datname)
        await asyncio.sleep(0.01)
    return HttpResponse(str(len(names)))


async def transactions(request: HttpRequest) -> HttpResponse:
    """A transaction across several calls: all of them must be in it."""
    block = transaction.atomic()
    await sync_to_async(block.__enter__)()
    seen = set()
    try:
        for _ in range(3):
            seen.add(await sync_to_async(backend)())
            await asyncio.sleep(0.01)
    finally:
        await sync_to_async(block.__exit__)(None, None, None)
    return HttpResponse(str(len(seen)))


def backend() -> tuple[int, str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid(), txid_current()::text")
        return tuple(cursor.fetchone())


# -- errors ---------------------------------------------------------------------------------------


def raises(request: HttpRequest) -> HttpResponse:
    count()
    raise RuntimeError("as asked")


async def araises(request: HttpRequest) -> HttpResponse:
    await acount()
    raise RuntimeError("as asked")


def upload(request: HttpRequest) -> HttpResponse:
    count()
    return HttpResponse(str(len(request.body)))


async def cancelled(request: HttpRequest) -> HttpResponse:
    await acount()
    task = asyncio.ensure_future(asyncio.sleep(60))
    asyncio.get_running_loop().call_soon(task.cancel)
    await task
    return HttpResponse("never")


# -- what outlives its request --------------------------------------------------------------------

_tasks: set[asyncio.Task[Any]] = set()


async def background(request: HttpRequest) -> HttpResponse:
    async def later() -> None:
        await await_gate()
        await acount()
        note("background")

    await acount()
    task = asyncio.create_task(later())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return HttpResponse("done")
