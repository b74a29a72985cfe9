"""Sync code that calls async code that calls sync code. Each scenario answers in a few words.

Ten requests at once get the same answer as one does without lifeguard, on any number of lanes, with
every version of asgiref. Threads and backends are compared inside: the answer says whether they are
the same.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import asgiref
from asgiref.local import Local
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from django.core.exceptions import ObjectDoesNotExist
from django.db import connection, transaction
from django.http import HttpResponse, StreamingHttpResponse
from django.utils.decorators import async_only_middleware, sync_only_middleware

from tests.django.lanes.site import Site, backend, run_sql, until

AT_ONCE = 10

View = Callable[[Any], Any]
ALL: dict[str, Callable[[Site], Awaitable[Any]]] = {}

call = sync_to_async
variable: ContextVar[str] = ContextVar("variable", default="unset")
local = Local()
here = threading.get_ident


class Expected(Exception):
    pass


def bridge(*middleware: Callable[..., Any], tasks: bool = False) -> Callable[[View], View]:
    """Ask this view ten times at once, below *middleware*.

    *tasks*: it makes tasks below a parked thread. asgiref 3.7 sends their calls to that thread's
    executor, and all of them wait for ever, with and without lifeguard.
    """
    if tasks and asgiref.__version__.startswith("3.7."):
        return lambda view: view

    def register(view: View) -> View:
        async def scenario(site: Site) -> list[str]:
            app = site.application(*middleware) if middleware else site.app
            number = AT_ONCE if site.options.guarded else 1
            answers = await site.get_all([view] * number, app)
            if site.options.guarded:
                await until(site.are_free, lambda: f"{site.lanes()}")
            return sorted({f"{answer.status} {answer.text}" for answer in answers})

        ALL[view.__name__.replace("_", " ")] = scenario
        return view

    return register


def said(**facts: Any) -> HttpResponse:
    return HttpResponse(", ".join(f"{name}: {value}" for name, value in facts.items()))


def row(number: int) -> Any:
    from tests.django.lanes.models import Row

    return Row.objects.filter(id=number).values_list("value", flat=True)


# -- down and up again ----------------------------------------------------------------------------


@bridge()
async def sync_in_async_in_sync(request: Any) -> HttpResponse:
    """Three bridges: what runs below a parked thread runs in that thread."""

    def outer() -> tuple[bool, bool, int]:
        with transaction.atomic():
            pid = backend()
            same_thread, same_backend = async_to_sync(middle)(here(), pid)
            return same_thread, same_backend, pid == backend()

    async def middle(thread: int, pid: int) -> tuple[bool, bool]:
        await asyncio.sleep(0)
        return await call(lambda: (here() == thread, backend() == pid))()

    return said(same=await call(outer)())


@bridge()
def async_in_a_sync_view(request: Any) -> HttpResponse:
    thread, pid = here(), backend()

    async def inside() -> tuple[Any, Any]:
        return await call(lambda: (here() == thread, backend() == pid))(), await row(1).aget()

    return said(same=async_to_sync(inside)(), twice=async_to_sync(inside)())


@bridge()
def five_levels(request: Any) -> HttpResponse:
    threads = {here()}

    def go(level: int) -> int:
        threads.add(here())
        if level == 0:
            return int(run_sql("SELECT 5")[0][0])
        return async_to_sync(ago)(level - 1)

    async def ago(level: int) -> int:
        return await call(go)(level)

    return said(result=go(5), threads=len(threads))


@bridge(tasks=True)
def gather_in_a_sync_view(request: Any) -> HttpResponse:
    async def inside() -> list[Any]:
        return await asyncio.gather(*(row(number).aget() for number in range(1, 6)))

    with transaction.atomic():
        return said(rows=async_to_sync(inside)())


# -- many at once ---------------------------------------------------------------------------------


@bridge()
async def gather_of_five(request: Any) -> HttpResponse:
    return said(rows=await asyncio.gather(*(row(number).aget() for number in range(1, 6))))


@bridge()
async def task_group(request: Any) -> HttpResponse:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(row(number).aget()) for number in range(1, 6)]
    return said(rows=[task.result() for task in tasks])


@bridge()
async def task_group_that_fails(request: Any) -> HttpResponse:
    try:
        async with asyncio.TaskGroup() as group:
            for number in (1, 2, -1, 3):
                group.create_task(row(number).aget())
    except* ObjectDoesNotExist as caught:
        names = [type(exc).__name__ for exc in caught.exceptions]
    return said(raised=names, after=await row(4).aget())


@bridge()
async def tasks_of_their_own(request: Any) -> HttpResponse:
    async def both(number: int) -> str:
        first = await row(number).aget()
        await asyncio.sleep(0)
        return f"{first} and {await row(number + 1).aget()}"

    tasks = [asyncio.create_task(both(number)) for number in range(1, 4)]
    return said(rows=[await task for task in tasks])


@bridge()
async def calls_run_one_after_another(request: Any) -> HttpResponse:
    """Whatever one request asks for at once, never two of its calls at the same time."""
    inside: list[int] = []
    most = 0

    def job(number: int) -> int:
        nonlocal most
        inside.append(number)
        most = max(most, len(inside))
        backend()
        inside.remove(number)
        return number

    numbers = await asyncio.gather(*(call(job)(number) for number in range(8)))
    return said(numbers=numbers, at_once=most)


@bridge()
async def beside_other_threads(request: Any) -> HttpResponse:
    outside = call(lambda: run_sql("SELECT 1")[0][0], thread_sensitive=False)
    inside = call(lambda: run_sql("SELECT 2")[0][0])
    return said(rows=await asyncio.gather(outside(), inside(), asyncio.to_thread(int, "3")))


# -- transactions ---------------------------------------------------------------------------------


@bridge()
async def atomic_in_a_call(request: Any) -> HttpResponse:
    def job() -> list[Any]:
        with transaction.atomic():
            run_sql("CREATE TEMP TABLE mine (n int) ON COMMIT DROP")
            run_sql("INSERT INTO mine VALUES (1), (2)")
            try:
                with transaction.atomic():
                    run_sql("DELETE FROM mine")
                    raise Expected
            except Expected:
                return run_sql("SELECT n FROM mine")

    return said(rows=await call(job)())


@bridge()
async def atomic_that_spans_calls(request: Any) -> HttpResponse:
    block = transaction.atomic()
    await call(block.__enter__)()
    await call(run_sql)("CREATE TEMP TABLE mine (n int) ON COMMIT DROP")
    await call(run_sql)("INSERT INTO mine VALUES (3)")
    await asyncio.sleep(0.001)
    rows = await call(run_sql)("SELECT n FROM mine")
    await call(block.__exit__)(None, None, None)
    return said(rows=rows)


@bridge()
async def on_commit(request: Any) -> HttpResponse:
    happened: list[str] = []

    def job() -> None:
        with transaction.atomic():
            transaction.on_commit(lambda: happened.append("committed"))
            async_to_sync(ajob)()
            happened.append("end of the block")

    async def ajob() -> None:
        await call(lambda: transaction.on_commit(lambda: happened.append("committed, too")))()

    await call(job)()
    return said(happened=happened)


@bridge()
async def rollback_by_an_exception(request: Any) -> HttpResponse:
    def job() -> None:
        with transaction.atomic():
            run_sql("INSERT INTO lanes_rows (value) VALUES ('rolled back')")
            raise Expected("as asked")

    try:
        await call(job)()
    except Expected as exc:
        text = str(exc)
    rows = await call(run_sql)("SELECT count(*) FROM lanes_rows WHERE value = 'rolled back'")
    return said(raised=text, rows=rows)


# -- middleware -----------------------------------------------------------------------------------


@sync_only_middleware
def sync_middleware(get_response: Any) -> Any:
    def middleware(request: Any) -> Any:
        variable.set("of the middleware")
        local.value = "of the middleware"
        request.pid = backend()
        request.thread = here()
        response = get_response(request)
        response["X-After"] = str(backend() == request.pid and here() == request.thread)
        response.content += f", after: {response['X-After']}, {variable.get()}".encode()
        return response

    return middleware


@async_only_middleware
def async_middleware(get_response: Any) -> Any:
    async def middleware(request: Any) -> Any:
        variable.set("of the async middleware")
        request.pid = await call(backend)()
        response = await get_response(request)
        response.content += f", {variable.get()}, {await row(1).aget()}".encode()
        return response

    return middleware


@sync_only_middleware
def atomic_middleware(get_response: Any) -> Any:
    def middleware(request: Any) -> Any:
        try:
            with transaction.atomic():
                run_sql("CREATE TEMP TABLE mine (n int) ON COMMIT DROP")
                response = get_response(request)
                run_sql("SELECT n FROM mine")
                raise Expected
        except Expected:
            return response

    return middleware


@sync_only_middleware
def counting_middleware(get_response: Any) -> Any:
    def middleware(request: Any) -> Any:
        count = 0

        def counted(execute: Any, *args: Any) -> Any:
            nonlocal count
            count += 1
            return execute(*args)

        with connection.execute_wrapper(counted):
            response = get_response(request)
        response.content += f", statements: {count}".encode()
        return response

    return middleware


@bridge(sync_middleware, tasks=True)
async def async_view_below_sync_middleware(request: Any) -> HttpResponse:
    value, spot = variable.get(), local.value
    variable.set("of the view")
    same = await call(lambda: (here() == request.thread, backend() == request.pid))()
    rows = await asyncio.gather(row(1).aget(), row(2).aget())
    return said(variable=value, local=spot, same=same, rows=rows)


@bridge(async_middleware)
def sync_view_below_async_middleware(request: Any) -> HttpResponse:
    value = variable.get()
    variable.set("of the view")
    return said(variable=value, row=row(2).get())


@bridge(async_middleware, sync_middleware, async_middleware)
async def a_pile_of_middleware(request: Any) -> HttpResponse:
    same = await call(lambda: here() == request.thread)()
    return said(variable=variable.get(), same=same, row=await row(3).aget())


@bridge(sync_middleware, async_middleware, sync_middleware)
def a_sync_view_below_a_pile(request: Any) -> HttpResponse:
    return said(variable=variable.get(), same=here() == request.thread, row=row(3).get())


@bridge(atomic_middleware, tasks=True)
async def async_view_in_a_transaction_of_the_middleware(request: Any) -> HttpResponse:
    await call(run_sql)("INSERT INTO mine VALUES (9)")
    rows = await asyncio.create_task(call(run_sql)("SELECT n FROM mine"))
    return said(rows=rows)


@bridge(counting_middleware, tasks=True)
async def statements_of_an_async_view(request: Any) -> HttpResponse:
    return said(rows=await asyncio.gather(*(row(number).aget() for number in range(1, 4))))


# -- what is carried over -------------------------------------------------------------------------


@bridge()
async def context_variables(request: Any) -> HttpResponse:
    variable.set("of the view")
    local.value = "of the view"

    def job() -> tuple[str, Any]:
        seen = variable.get(), local.value
        variable.set("of the call")
        local.value = "of the call"
        return seen

    seen = await call(job)()
    return said(seen=seen, variable=variable.get(), local=local.value)


@bridge()
async def a_stranger_sees_no_local(request: Any) -> HttpResponse:
    """What the last request has left in the thread is not this one's."""
    before = await call(lambda: (getattr(local, "mine", None), variable.get()))()
    await call(setattr)(local, "mine", request.path)
    after = await call(lambda: local.mine == request.path)()
    return said(before=before, after=after)


@bridge()
async def user_code_with_a_context_of_its_own(request: Any) -> HttpResponse:
    thread = await call(here)()
    async with ThreadSensitiveContext():
        inside = await row(1).aget()
        await call(backend)()
    return said(inside=inside, after=await row(2).aget(), is_a_thread=thread != here())


@bridge()
async def exceptions(request: Any) -> HttpResponse:
    caught = []
    for error in (Expected("one"), KeyError("two"), ConnectionError("three"), SystemExit(4)):

        def job(error: BaseException = error) -> None:
            raise error

        try:
            await call(job)()
        except BaseException as exc:
            caught.append(f"{type(exc).__name__} {exc} {exc is error}")
    try:
        await row(-1).aget()
    except ObjectDoesNotExist as exc:
        caught.append(type(exc).__name__)
    return said(caught=caught)


@bridge()
async def an_exception_through_three_bridges(request: Any) -> HttpResponse:
    def outer() -> None:
        async_to_sync(middle)()

    async def middle() -> None:
        await call(inner)()

    def inner() -> None:
        run_sql("SELECT 1 / 0")

    try:
        await call(outer)()
    except Exception as exc:
        return said(raised=type(exc).__name__, row=await row(1).aget())
    return said(raised=None)


@bridge()
async def a_call_that_is_cancelled(request: Any) -> HttpResponse:
    """Its thread goes on to the end of it, and the next call comes after it."""
    happened: list[str] = []

    def job() -> None:
        run_sql("SELECT pg_sleep(0.02)")
        happened.append("slept")

    task = asyncio.create_task(call(job)())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))
    await call(happened.append)("next")
    return said(cancelled=task.cancelled(), last=happened[-1])


@bridge()
async def a_stream(request: Any) -> StreamingHttpResponse:
    async def rows() -> AsyncIterator[str]:
        for number in range(1, 4):
            yield await row(number).aget()
            await asyncio.sleep(0)
            yield str(await call(lambda: async_to_sync(row(1).aget)())())

    return StreamingHttpResponse(rows())


@bridge()
async def async_code_in_an_executor(request: Any) -> HttpResponse:
    """In another thread with a loop of its own."""

    async def inside() -> str:
        return str(await row(1).aget())

    return said(row=await asyncio.to_thread(lambda: async_to_sync(inside)()))
