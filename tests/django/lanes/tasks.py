"""Tasks that outlive the request that made them. Each tells how many connections it has left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.core.signals import request_finished
from django.db import transaction
from django.http import HttpResponse

from tests.django.lanes.site import Site, backend, run_sql, soon, until

ALL: dict[str, Callable[[Site], Awaitable[Any]]] = {}
GUARDED_ONLY: list[str] = []


def scenario(func: Callable[[Site], Awaitable[Any]]) -> Callable[[Site], Awaitable[Any]]:
    ALL[func.__name__.replace("_", " ")] = func
    return func


def guarded_only(func: Callable[[Site], Awaitable[Any]]) -> Callable[[Site], Awaitable[Any]]:
    GUARDED_ONLY.append(func.__name__.replace("_", " "))
    return scenario(func)


call = sync_to_async
tasks: set[asyncio.Task[Any]] = set()


def background(work: Awaitable[Any]) -> asyncio.Task[Any]:
    task = asyncio.ensure_future(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


async def outlive(
    site: Site,
    later: Callable[[int], Awaitable[Any]],
    number: int = 4,
    *,
    first: bool = True,
) -> list[Any]:
    """What *later* returns in tasks that go on when their requests are over."""
    go = asyncio.Event()
    made: list[asyncio.Task[Any]] = []

    async def work(which: int) -> Any:
        await soon(go)
        return await later(which)

    async def starts(request: Any) -> HttpResponse:
        if first:
            await call(backend)()
        made.append(background(work(len(made))))
        return HttpResponse("started")

    answers = await site.get_all([starts] * number)
    assert [answer.status for answer in answers] == [200] * number, site.said.lines[-3:]
    go.set()
    async with asyncio.timeout(10):
        results: list[Any] = await asyncio.gather(*made)
    made.clear()
    return results


@scenario
async def a_query_after_the_request(site: Site) -> int:
    async def later(which: int) -> list[Any]:
        return [await call(run_sql)("SELECT %s::int", which) for _ in range(3)]

    results = await outlive(site, later)
    assert results == [[[(which,)]] * 3 for which in range(4)]
    return await site.left()


@scenario
async def the_first_query_of_all_is_the_tasks(site: Site) -> int:
    async def later(which: int) -> list[Any]:
        return await call(run_sql)("SELECT %s::int", which)

    assert await outlive(site, later, first=False) == [[(which,)] for which in range(4)]
    return await site.left()


@scenario
async def a_transaction_after_the_request(site: Site) -> int:
    """It spans calls, as it may in a request."""

    async def later(which: int) -> set[int]:
        block = transaction.atomic()
        await call(block.__enter__)()
        pids = {await call(backend)() for _ in range(3)}
        await call(block.__exit__)(None, None, None)
        return pids

    assert [len(pids) for pids in await outlive(site, later)] == [1] * 4
    return await site.left()


@scenario
async def five_at_once_after_the_request(site: Site) -> int:
    async def later(which: int) -> list[Any]:
        calls = (call(run_sql)("SELECT %s::int", number) for number in range(5))
        return [rows[0][0] for rows in await asyncio.gather(*calls)]

    assert await outlive(site, later) == [[0, 1, 2, 3, 4]] * 4
    return await site.left()


@scenario
async def a_query_that_fails_after_the_request(site: Site) -> int:
    async def later(which: int) -> str:
        try:
            await call(run_sql)("SELECT 1 / 0")
        except Exception as exc:
            return type(exc).__name__
        return "no error"

    assert await outlive(site, later) == ["DataError"] * 4
    return await site.left()


@scenario
async def queries_before_during_and_after_the_end(site: Site) -> int:
    """The task is at it all the time: right after ``request_finished`` it takes a connection out
    again, in the very thread of the request."""
    finished: list[int] = []

    def receiver(**_: Any) -> None:
        finished.append(asked[0])

    asked = [0]
    made: list[asyncio.Task[Any]] = []

    async def asks() -> None:
        while asked[0] < 5 or not finished or asked[0] < finished[-1] + 5:
            await call(backend)()
            asked[0] += 1

    async def starts(request: Any) -> HttpResponse:
        made.append(background(asks()))
        await until(lambda: asked[0] >= 2)
        return HttpResponse("started")

    request_finished.connect(receiver)
    try:
        for _ in range(4):
            finished.clear()
            asked[0] = 0
            answer = await site.get(starts)
            assert answer.status == 200, site.said.lines[-3:]
            async with asyncio.timeout(10):
                await made.pop()
            assert finished and asked[0] >= finished[-1] + 5
    finally:
        request_finished.disconnect(receiver)
    return await site.left()


@scenario
async def a_task_that_is_cancelled(site: Site) -> int:
    """In its own time, by the app: in the middle of its queries."""
    made: list[asyncio.Task[Any]] = []
    asked = [0]

    async def asks() -> None:
        while True:
            await call(backend)()
            asked[0] += 1

    async def starts(request: Any) -> HttpResponse:
        made.append(background(asks()))
        return HttpResponse("started")

    for _ in range(3):
        asked[0] = 0
        await site.get(starts)
        await until(lambda: asked[0] >= 3)
        task = made.pop()
        task.cancel()
        await asyncio.wait((task,))
        assert task.cancelled()
    return await site.left()


@guarded_only
async def a_callback_of_its_own(site: Site) -> int:
    """``lifeguard.callback`` in a call that outlives the request: it has a unit, which ends."""
    import lifeguard
    from tests.django.lanes.guard import guard

    called: list[tuple[str, int]] = []

    def job(which: int) -> None:
        guard.callback(called.append, ("ended", which))
        backend()
        called.append(("asked", which))

    async def later(which: int) -> None:
        await call(job)(which)

    await outlive(site, later)
    for which in range(4):
        mine = [what for what, number in called if number == which]
        assert mine == ["asked", "ended"], called
    assert issubclass(lifeguard.ClosedError, lifeguard.LifeguardError)
    return await site.left()


@guarded_only
async def an_async_pool_after_the_request(site: Site) -> int:
    """psycopg's own pool, a resource: what the task borrows, and forgets, is the task's."""
    from psycopg.conninfo import make_conninfo
    from psycopg_pool import AsyncConnectionPool

    from tests.django.lanes.guard import guard

    dsn = make_conninfo(site.options.dsn, application_name=f"{site.options.name}.async")
    pool = AsyncConnectionPool(dsn, open=False, min_size=1, max_size=2, timeout=5)
    app = guard.wrap(site.app, resources=[pool])
    go = asyncio.Event()
    made: list[asyncio.Task[Any]] = []

    async def later() -> int:
        await soon(go)
        async with pool.connection() as conn:
            cursor = await conn.execute("SELECT 7")
            row = await cursor.fetchone()
        forgotten = await pool.getconn()
        assert (await call(backend)()) and row and forgotten is not None
        return int(row[0])

    async def starts(request: Any) -> HttpResponse:
        made.append(background(later()))
        return HttpResponse("started")

    answers = [await site.get(starts, app) for _ in range(4)]
    assert [answer.status for answer in answers] == [200] * 4, site.said.lines[-3:]
    go.set()
    async with asyncio.timeout(10):
        assert await asyncio.gather(*made) == [7] * 4  # four forget one of two: all come back
    await until(
        lambda: pool.get_stats()["pool_size"] == pool.get_stats()["pool_available"],
        lambda: f"{pool.get_stats()}",
    )
    return await site.left()
