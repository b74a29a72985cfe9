"""What a request leaves open at its end: rolled back, closed, and said. There are eight lanes."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.core.signals import request_finished
from django.db import transaction
from django.http import HttpResponse, StreamingHttpResponse

from tests.django.lanes.site import Site, backend, run_sql, until

call = sync_to_async

ALL: dict[str, Callable[[Site], Awaitable[Any]]] = {}

LOCKS = os.getpid()
"""Processes beside this one have locks of their own."""

kept: list[Any] = []
"""What would be gone with the request otherwise, a cursor for one."""


def insert(value: str) -> None:
    run_sql("INSERT INTO lanes_rows (value) VALUES (%s)", value)


def atomic() -> None:
    transaction.atomic().__enter__()
    insert("left by atomic")


def begin() -> None:
    run_sql("BEGIN")
    insert("left by BEGIN")


def autocommit_off() -> None:
    transaction.set_autocommit(False)
    insert("left by autocommit")


def failed() -> None:
    run_sql("BEGIN")
    try:
        run_sql("SELECT 1 / 0")
    except Exception:
        return


def cursor() -> None:
    from tests.django.lanes.models import Row

    rows = Row.objects.iterator(chunk_size=7)
    next(rows)
    kept.append(rows)


def lock() -> None:
    run_sql("SELECT pg_advisory_lock(%s, 31)", LOCKS)


def listen() -> None:
    run_sql("LISTEN news")


LEFT = {
    "atomic": (atomic, "a transaction is open (atomic)"),
    "BEGIN": (begin, "a transaction is open"),
    "autocommit": (autocommit_off, "autocommit is off"),
    "failed": (failed, "a transaction is open"),
    "cursor": (cursor, "a server-side cursor is open"),
    "lock": (lock, "an advisory lock is held"),
    "LISTEN": (listen, "it listens to notifications (LISTEN)"),
}


async def everything_at_once(site: Site) -> None:
    """Each is over with its backend, nothing of it was committed, and the log names its request."""
    pids: dict[str, int] = {}
    names: dict[str, str] = {}

    def leaves(name: str) -> Callable[[Any], Awaitable[HttpResponse]]:
        async def leaves_open(request: Any) -> HttpResponse:
            await call(LEFT[name][0])()
            pids[name] = await call(backend)() if name != "failed" else 0
            names[name] = request.path
            return HttpResponse("left")

        return leaves_open

    answers = await site.get_all([leaves(name) for name in LEFT])
    assert [answer.text for answer in answers] == ["left"] * len(LEFT), site.said.lines
    # What is held has its words, and others are served meanwhile.
    assert len({pid for pid in pids.values() if pid}) == len(LEFT) - 1, pids
    assert set(site.held()) == {why for _, why in LEFT.values()}, site.lanes()
    await site.meet(1)
    await until(site.are_free, lambda: f"{site.lanes()}")
    for name, (_, why) in LEFT.items():
        assert f"GET {names[name]}, which is over: {why}. It is rolled back and closed" in site.said
    if site.options.keeps != "in a pool":  # which may go on with a session that has nothing left
        alive = set(site.ask("SELECT pid FROM pg_stat_activity"))
        assert [name for name in pids if pids[name] in alive] == []
    assert site.ask("SELECT count(*) FROM lanes_rows WHERE starts_with(value, 'left')") == [0]
    assert site.ask("SELECT pid FROM pg_locks WHERE objid = 31 AND classid = %s", LOCKS) == []
    assert await everybody_asks(site, "SELECT count(*) FROM pg_cursors") == {0}
    assert await everybody_asks(site, "SELECT count(*) FROM pg_listening_channels()") == {0}
    await site.is_quiet()
    assert await site.left() == 0


async def everybody_asks(site: Site, sql: str) -> set[Any]:
    """Requests on all lanes at the same time: what each has in its session."""
    barrier = threading.Barrier(site.options.lanes)
    found: list[Any] = []

    def asks(request: Any) -> HttpResponse:
        found.extend(run_sql(sql)[0])
        barrier.wait(10)
        return HttpResponse("asked")

    answers = await site.get_all([asks] * site.options.lanes)
    assert [answer.status for answer in answers] == [200] * site.options.lanes, site.said.lines
    return set(found)


async def atomic_with_a_receiver(site: Site) -> None:
    """Somebody listens to ``request_finished``: Django closes what it finds in the middle of a
    block. The next request in that thread begins with a connection like any other."""

    async def leaves_open(request: Any) -> HttpResponse:
        await call(atomic)()
        raise RuntimeError("as asked")

    def receiver(**_: Any) -> None:
        heard.append("finished")

    heard: list[str] = []
    request_finished.connect(receiver)
    try:
        answers = await site.get_all([leaves_open] * site.options.lanes)
        assert [answer.status for answer in answers] == [500] * len(answers)
        assert len(heard) == len(answers)
        await until(site.are_free, lambda: f"{site.lanes()}")
        for _ in range(2):
            await site.meet()
    finally:
        request_finished.disconnect(receiver)
    assert site.ask("SELECT count(*) FROM lanes_rows WHERE starts_with(value, 'left')") == [0]
    await site.is_quiet()
    assert await site.left() == 0


async def a_stream_that_ends_in_its_transaction(site: Site) -> None:
    """The client leaves in the middle of atomic() in an async generator: rolled back by itself."""

    async def streams(request: Any) -> StreamingHttpResponse:
        async def chunks() -> AsyncIterator[str]:
            block = transaction.atomic()
            await call(block.__enter__)()
            try:
                await call(insert)("left by a stream")
                yield "one\n"
                raise RuntimeError("as asked")
            except BaseException as exc:
                await call(block.__exit__)(type(exc), exc, None)
                raise

        return StreamingHttpResponse(chunks())

    before = len(site.said.lines)
    request = site.start(streams)
    await request.end()
    await site.is_quiet()
    assert site.ask("SELECT count(*) FROM lanes_rows WHERE starts_with(value, 'left')") == [0]
    assert not [line for line in site.said.lines[before:] if "which is over" in line]


ALL["everything at once"] = everything_at_once
ALL["a stream that ends in its transaction"] = a_stream_that_ends_in_its_transaction
ALL["atomic with a receiver"] = atomic_with_a_receiver
