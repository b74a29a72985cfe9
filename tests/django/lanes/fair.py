"""Who goes first where everybody wants a lane. The site has two."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.http import HttpResponse, StreamingHttpResponse

from tests.django.lanes.site import Site, backend, run_sql, until

ALL: dict[str, Callable[[Site], Awaitable[Any]]] = {}


def scenario(func: Callable[[Site], Awaitable[Any]]) -> Callable[[Site], Awaitable[Any]]:
    ALL[func.__name__.replace("_", " ")] = func
    return func


call = sync_to_async

TABS = 24


async def asks(request: Any) -> HttpResponse:
    return HttpResponse(str(await call(backend)()))


@scenario
async def sixty_at_once(site: Site) -> None:
    """Each is served, who came first before who came last, and nobody waits for very long."""
    took: list[float] = []
    served: list[int] = []

    def quick(request: Any) -> HttpResponse:
        run_sql("SELECT pg_sleep(0.002)")
        took.append(time.monotonic() - begin)
        served.append(int(request.path.rpartition("-")[2]))
        return HttpResponse("ok")

    async def aquick(request: Any) -> HttpResponse:
        for _ in range(3):
            await call(backend)()
        took.append(time.monotonic() - begin)
        return HttpResponse("ok")

    await site.get(asks)  # which opens the worker
    begin = time.monotonic()
    answers = await site.get_all([quick, aquick] * 30)
    assert [answer.text for answer in answers] == ["ok"] * 60, site.said.lines[-3:]
    average = sum(took) / len(took)
    assert max(took) < 5 * average, (max(took), average)
    came = sorted(served)
    first, last = (map(served.index, some) for some in (came[:10], came[-10:]))
    assert max(first) < min(last), served
    await site.is_quiet()


async def beside(site: Site, tab: Callable[[Callable[[], bool]], Awaitable[None]]) -> int:
    """How many queries of the tabs came between a request's begin and its end, at most."""
    asked = 0
    over = False

    def ask() -> None:
        nonlocal asked
        backend()
        asked += 1

    async def polls() -> None:
        while not over:
            await call(ask)()

    tabs = [asyncio.create_task(tab(polls)) for _ in range(TABS)]
    await until(lambda: asked > TABS)
    most = 0
    for _ in range(12):
        before = asked
        answer = await site.get(asks)
        assert answer.status == 200, site.said.lines[-3:]
        most = max(most, asked - before)
    over = True
    await asyncio.wait(tabs, timeout=10)
    assert not [task.exception() for task in tabs if task.exception()]
    await site.is_quiet()
    return most


@scenario
async def websockets_that_poll(site: Site) -> int:
    """Tabs that ask all the time, one question after another: requests come in between."""

    async def tab(polls: Callable[[], Awaitable[None]]) -> None:
        async def websocket(scope: Any, receive: Any, send: Any) -> None:
            assert scope["type"] == "websocket"  # it has no lifespan
            await polls()

        app = site.wrap(websocket)
        scope = {"type": "websocket", "path": "/tab", "headers": [], "query_string": b""}
        request = site.send(scope, app)
        answer = await request.end()
        assert answer.error is None, answer

    return await beside(site, tab)


@scenario
async def streams_that_poll(site: Site) -> int:
    async def tab(polls: Callable[[], Awaitable[None]]) -> None:
        async def events(request: Any) -> StreamingHttpResponse:
            async def chunks() -> AsyncIterator[str]:
                yield "data: one\n\n"
                await polls()

            return StreamingHttpResponse(chunks())

        answer = await site.get(events)
        assert answer.error is None, answer

    return await beside(site, tab)


@scenario
async def tasks_that_poll(site: Site) -> int:
    """Their requests are over, and they are as patient as others."""

    async def tab(polls: Callable[[], Awaitable[None]]) -> None:
        made = []

        async def starts(request: Any) -> HttpResponse:
            made.append(asyncio.create_task(polls()))
            return HttpResponse("started")

        await site.get(starts)
        await made[0]

    return await beside(site, tab)
