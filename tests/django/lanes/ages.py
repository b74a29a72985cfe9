"""How old a connection may become, and one that PostgreSQL has ended. The site has one lane."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.http import HttpResponse

from tests.django.lanes.site import Site, backend

ALL: dict[str, Callable[[Site], Awaitable[Any]]] = {}


def scenario(func: Callable[[Site], Awaitable[Any]]) -> Callable[[Site], Awaitable[Any]]:
    ALL[func.__name__.replace("_", " ")] = func
    return func


async def aasks(request: Any) -> HttpResponse:
    return HttpResponse(str(await sync_to_async(backend)()))


def asks(request: Any) -> HttpResponse:
    return HttpResponse(str(backend()))


@scenario
async def the_age_is_respected(site: Site) -> str:
    """Young: the same backend for every request. Older than CONN_MAX_AGE: a new one."""
    begin = time.monotonic()
    pids = [(await site.get(view)).text for view in (asks, aasks, asks)]
    young = time.monotonic() - begin < 0.9
    await asyncio.sleep(1.1)
    pids.append((await site.get(asks)).text)
    assert all(pid.isdigit() for pid in pids), site.said.lines[-3:]
    assert len(set(pids[:3])) == 1 or not young, pids  # a machine that was away for a second
    assert await site.left() == 0
    return "a new one" if pids[3] not in pids[:3] else "the same"


@scenario
async def a_backend_that_was_ended(site: Site) -> list[int]:
    """While the lane was idle. The statuses of the next requests."""
    statuses = []
    for view in (asks, aasks):
        pid = (await site.get(view)).text
        if site.ask("SELECT pg_terminate_backend(%s, 5000)", int(pid)) != [True]:
            # With CONN_MAX_AGE=0 it is closed already.
            assert site.options.keeps == "nothing"
        statuses += [(await site.get(view)).status for _ in range(3)]
    return statuses


@scenario
async def a_backend_that_was_ended_in_a_request(site: Site) -> list[int]:
    """Between two calls of it. That request fails, the next one does not."""
    statuses = []
    for _ in range(2):

        async def is_cut_off(request: Any) -> HttpResponse:
            pid = await sync_to_async(backend)()
            site.ask("SELECT pg_terminate_backend(%s, 5000)", pid)
            await sync_to_async(backend)()
            return HttpResponse("survived")

        statuses += [(await site.get(view)).status for view in (is_cut_off, aasks, asks)]
    return statuses
