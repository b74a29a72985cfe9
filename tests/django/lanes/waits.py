"""Who waits for a lane, for how long, and what they are told. The site has two lanes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Self

from asgiref.sync import sync_to_async
from django.core.signals import request_finished
from django.db import transaction
from django.http import HttpResponse

from tests.django.lanes.site import Site, backend, soon, until

ALL: dict[str, Callable[[Site], Awaitable[Any]]] = {}


def scenario(func: Callable[[Site], Awaitable[Any]]) -> Callable[[Site], Awaitable[Any]]:
    ALL[func.__name__.replace("_", " ")] = func
    return func


call = sync_to_async


class Held:
    """Requests in a transaction each, one on every lane, until they are told to end."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.go = asyncio.Event()

    async def __aenter__(self) -> Self:
        async def pays(request: Any) -> HttpResponse:
            block = transaction.atomic()
            await call(block.__enter__)()
            await call(backend)()
            await soon(self.go)
            await call(block.__exit__)(None, None, None)
            return HttpResponse("paid")

        number = self.site.options.lanes
        self.requests = [self.site.start(pays) for _ in range(number)]
        await until(lambda: len(self.site.held()) == number, lambda: f"{self.site.lanes()}")
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.go.set()
        answers = [await request.end() for request in self.requests]
        assert [answer.text for answer in answers] == ["paid"] * len(answers), answers


async def asks(request: Any) -> HttpResponse:
    return HttpResponse(str(await call(backend)()))


def asks_sync(request: Any) -> HttpResponse:
    return HttpResponse(str(backend()))


@scenario
async def a_timeout_names_the_holders(site: Site) -> None:
    """An async view can catch it; it is a TimeoutError, and says who has which lane, and why."""
    from lifeguard import LifeguardError
    from lifeguard.django import LaneTimeout

    caught: list[Exception] = []

    async def gives_up(request: Any) -> HttpResponse:
        try:
            await call(backend)()
        except LaneTimeout as exc:
            caught.append(exc)
        return HttpResponse("given up")

    async with Held(site):
        answer = await site.get(gives_up)
    assert answer.text == "given up", answer
    (error,) = caught
    assert isinstance(error, LifeguardError) and isinstance(error, TimeoutError)
    text = str(error)
    assert text.startswith("GET /gives_up-") and "waited for a lane for " in text
    for number in (1, 2):
        assert f"lane {number}: held for " in text
    assert text.count("by GET /pays-") == 2
    assert text.count("a transaction is open (atomic)") == 2
    assert "LIFEGUARD['LANES'] (now 2)" in text
    await site.is_quiet()


@scenario
async def a_timeout_is_an_error_of_the_view(site: Site) -> None:
    """Django answers 500, its log says why, and the next request is served."""
    before = len(site.said.lines)
    async with Held(site):
        answers = await site.get_all([asks, asks_sync])
    assert [answer.status for answer in answers] == [500, 500], answers
    assert [answer.error for answer in answers] == [None, None]
    said = "\n".join(site.said.lines[before:])
    assert "Internal Server Error: /asks-" in said
    assert "lifeguard.django.LaneTimeout: GET /asks-" in said
    assert "lifeguard.django.LaneTimeout: GET /asks_sync-" in said
    assert (await site.get(asks)).status == (await site.get(asks_sync)).status == 200
    await site.meet()
    await site.is_quiet()


@scenario
async def a_timeout_and_its_request_finished(site: Site) -> None:
    """A request that never got a lane is finished, too: every receiver hears of it once."""
    finished: list[str] = []

    def receiver(**_: Any) -> None:
        finished.append("finished")

    request_finished.connect(receiver)
    try:
        async with Held(site):
            answers = await site.get_all([asks, asks_sync])
            assert [answer.status for answer in answers] == [500, 500], answers
            await until(lambda: len(finished) == 2, lambda: f"{finished}")
    finally:
        request_finished.disconnect(receiver)
    await site.is_quiet()


@scenario
async def the_status_names_who_waits(site: Site) -> None:
    from lifeguard.django import status

    async with Held(site) as held:
        waiting = [site.start(view) for view in (asks, asks_sync)]
        await until(lambda: len(status()["waiting"]) == 2)
        names = [one["by"].rsplit("-", 1)[0] for one in status()["waiting"]]
        assert names == ["GET /asks", "GET /asks_sync"]
        held.go.set()
        assert {(await request.end()).status for request in waiting} == {200}
    assert status()["waiting"] == []
    assert status()["threads"] == []


@scenario
async def clients_that_leave_while_they_wait(site: Site) -> None:
    """They cost nothing: what they waited for is not done, and no lane is lost."""
    done: list[str] = []

    async def writes(request: Any) -> HttpResponse:
        await call(done.append)("async")
        return HttpResponse("done")

    def writes_sync(request: Any) -> HttpResponse:
        done.append("sync")
        return HttpResponse("done")

    async with Held(site):
        waiting = [site.start(view) for view in (writes, writes_sync, writes, writes_sync)]
        await asyncio.sleep(0.05)
        for request in waiting[:2]:
            request.leave()
        for request in waiting[2:]:  # as daphne and gunicorn do
            request.task.cancel()
        await asyncio.wait([request.task for request in waiting[2:]], timeout=10)
        assert all(request.task.done() for request in waiting[2:])
    for request in waiting:
        await request.end()
    assert done == []
    await site.meet()
    await site.is_quiet()
