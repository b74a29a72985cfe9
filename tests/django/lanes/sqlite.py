"""SQLite through lanes: the same results, and a transaction holds its lane there, too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import async_to_sync, sync_to_async
from django.db import transaction
from django.http import HttpResponse

from tests.django.lanes.site import Site, run_sql, soon, until

ALL: dict[str, Callable[[Site], Awaitable[Any]]] = {}

call = sync_to_async

TABLE = "CREATE TABLE IF NOT EXISTS lanes_rows (id integer PRIMARY KEY, value text)"


def scenario(func: Callable[[Site], Awaitable[Any]]) -> Callable[[Site], Awaitable[Any]]:
    ALL[func.__name__.replace("_", " ")] = func
    return func


@scenario
async def rows_of_one_request(site: Site) -> list[str]:
    """What one call has written, the next call of the request reads."""
    from tests.django.lanes.models import Row

    async def writes(request: Any) -> HttpResponse:
        def job() -> int:
            run_sql(TABLE)
            with transaction.atomic():
                row = Row.objects.create(value="one")
                async_to_sync(Row.objects.acreate)(value="two")
            return int(row.pk)

        pk = await call(job)()
        one = await Row.objects.aget(pk=pk)
        values = [row.value async for row in Row.objects.filter(pk__gte=pk).order_by("pk")[:2]]
        return HttpResponse(f"{one.value}: {' '.join(values)}")

    answers = [await site.get(writes) for _ in range(3)]
    return sorted({f"{answer.status} {answer.text}" for answer in answers})


@scenario
async def rollback(site: Site) -> list[str]:
    from tests.django.lanes.models import Row

    def view(request: Any) -> HttpResponse:
        run_sql(TABLE)
        before = Row.objects.count()
        try:
            with transaction.atomic():
                Row.objects.create(value="never")
                raise RuntimeError
        except RuntimeError:
            return HttpResponse(str(Row.objects.count() - before))

    answers = [await site.get(view) for _ in range(3)]
    return sorted({f"{answer.status} {answer.text}" for answer in answers})


@scenario
async def a_transaction_that_spans_calls(site: Site) -> list[str]:
    """While others read. With lifeguard: it holds a lane, which is free again when it is over."""
    begun, go = asyncio.Event(), asyncio.Event()
    block = transaction.atomic()

    async def writes(request: Any) -> HttpResponse:
        await call(run_sql)(TABLE)
        await call(block.__enter__)()
        await call(run_sql)("INSERT INTO lanes_rows (value) VALUES ('spans')")
        begun.set()
        await soon(go)
        rows = await call(run_sql)("SELECT count(*) FROM lanes_rows WHERE value = 'spans'")
        await call(transaction.set_rollback)(True)
        await call(block.__exit__)(None, None, None)
        return HttpResponse(str(rows))

    def reads(request: Any) -> HttpResponse:
        run_sql(TABLE) if not site.options.file else None
        return HttpResponse(str(run_sql("SELECT count(*) FROM lanes_rows WHERE value = 'spans'")))

    request = site.start(writes)
    await soon(begun)
    if site.options.guarded:
        await until(lambda: site.held() == ["a transaction is open (atomic)"])
    others = await site.get_all([reads] * 4)
    go.set()
    answers = [await request.end(), *others]
    if site.options.guarded:
        await until(site.are_free, lambda: f"{site.lanes()}")
    return [f"{answer.status} {answer.text}" for answer in answers]
