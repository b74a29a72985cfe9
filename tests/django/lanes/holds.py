"""What keeps a lane between two calls, and what does not. The site has two lanes.

Each scenario opens something in one call, asks again in another and closes it in a third, while
more requests than there are lanes want connections.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import islice
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connection, connections, transaction
from django.http import HttpResponse, StreamingHttpResponse

from tests.django.lanes.site import Site, backend, run_sql, soon, until

ROWS = 100
LOCKS = os.getpid()
"""Processes beside this one have locks of their own."""

ALL: dict[str, Callable[[Site], Awaitable[Any]]] = {}


def scenario(func: Callable[[Site], Awaitable[Any]]) -> Callable[[Site], Awaitable[Any]]:
    ALL[func.__name__.replace("_", " ")] = func
    return func


call = sync_to_async


async def crowd(site: Site) -> set[str]:
    """More requests than lanes, two calls each, all of them served. The backends they had."""

    async def passes_by(request: Any) -> HttpResponse:
        pids = set()
        for _ in range(2):
            pids.add(str(await call(backend)()))
            await asyncio.sleep(0)
        return HttpResponse(" ".join(pids))

    answers = await site.get_all([passes_by] * 4)
    assert [answer.status for answer in answers] == [200] * 4, answers
    return {pid for answer in answers for pid in answer.text.split()}


async def holds(
    site: Site,
    begin: Callable[[], Any],
    end: Callable[[], Any],
    *,
    why: str,
    alias: str = "default",
    seen: str = "",
    ask: Callable[[], Any] = lambda: None,
) -> None:
    """From *begin* to *end* the request has its backend, and nobody else has it.

    *seen*: what another session sees of it, for the process id of the backend.
    """
    begun, go_on, ended, go = (asyncio.Event() for _ in range(4))
    pids = []
    asked = []

    async def holder(request: Any) -> HttpResponse:
        await call(begin)()
        pids.append(await call(backend)(alias))
        begun.set()
        await soon(go_on)
        for _ in range(3):
            pids.append(await call(backend)(alias))
            asked.append(await call(ask)())
        await call(end)()
        ended.set()
        await soon(go)
        pids.append(await call(backend)(alias))
        return HttpResponse("held")

    request = site.start(holder)
    await soon(begun)
    # The line's own jobs are done a moment before the lane says that it is held.
    await until(lambda: site.held() == [why], lambda: f"{site.lanes()}")
    (lane,) = [lane for lane in site.lanes() if lane["state"] == "held"]
    assert lane["by"].startswith("GET /holder-")
    assert str(pids[0]) not in await crowd(site)
    assert site.held() == [why]
    if seen:
        assert site.ask(seen, pids[0]) == [True], seen
    competing = asyncio.create_task(crowd(site))
    go_on.set()
    await soon(ended)
    await competing
    # It is over although the request is not: all lanes are for everybody.
    await until(lambda: site.held() == [], lambda: f"{site.lanes()}")
    await site.meet()
    if seen:
        assert site.ask(seen, pids[0]) in ([False], []), seen
    go.set()
    answer = await request.end()
    assert (answer.status, answer.text) == (200, "held"), answer
    assert len(set(pids[:4])) == 1, pids
    assert asked == [asked[0]] * 3
    await site.is_quiet()


IN_TRANSACTION = "SELECT state LIKE 'idle in transaction%%' FROM pg_stat_activity WHERE pid = %s"
HAS_LOCK = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND pid = %s"


@scenario
async def atomic(site: Site) -> None:
    block = transaction.atomic()

    def begin() -> None:
        block.__enter__()
        run_sql("CREATE TEMP TABLE mine (n int) ON COMMIT DROP")
        run_sql("INSERT INTO mine VALUES (7)")

    await holds(
        site,
        begin,
        lambda: block.__exit__(None, None, None),
        ask=lambda: run_sql("SELECT n FROM mine"),
        why="a transaction is open (atomic)",
        seen=IN_TRANSACTION,
    )


@scenario
async def atomic_without_a_query_yet(site: Site) -> None:
    block = transaction.atomic()
    await holds(
        site,
        lambda: block.__enter__(),
        lambda: block.__exit__(None, None, None),
        why="a transaction is open (atomic)",
    )


@scenario
async def atomic_in_atomic(site: Site) -> None:
    blocks = [transaction.atomic(), transaction.atomic()]

    def begin() -> None:
        blocks[0].__enter__()
        blocks[1].__enter__()
        blocks[1].__exit__(None, None, None)

    await holds(
        site,
        begin,
        lambda: blocks[0].__exit__(None, None, None),
        why="a transaction is open (atomic)",
        seen=IN_TRANSACTION,
    )


@scenario
async def autocommit_off(site: Site) -> None:
    def begin() -> None:
        transaction.set_autocommit(False)
        run_sql("SELECT 1")

    def end() -> None:
        transaction.rollback()
        transaction.set_autocommit(True)

    await holds(
        site,
        begin,
        end,
        ask=transaction.get_autocommit,
        why="autocommit is off",
        seen=IN_TRANSACTION,
    )


@scenario
async def begin_in_sql(site: Site) -> None:
    await holds(
        site,
        lambda: run_sql("BEGIN"),
        lambda: run_sql("COMMIT"),
        why="a transaction is open",
        seen=IN_TRANSACTION,
    )


@scenario
async def a_failed_transaction(site: Site) -> None:
    """Until somebody says ROLLBACK, it is the request's to say."""
    failed, go = asyncio.Event(), asyncio.Event()
    pids = []

    def fail() -> None:
        run_sql("BEGIN")
        pids.append(backend())
        try:
            run_sql("SELECT 1 / 0")
        except Exception:
            return

    def roll_back() -> None:
        run_sql("ROLLBACK")
        pids.append(backend())

    async def fails(request: Any) -> HttpResponse:
        await call(fail)()
        failed.set()
        await soon(go)
        await call(roll_back)()
        return HttpResponse("done")

    request = site.start(fails)
    await soon(failed)
    await until(lambda: site.held() == ["a transaction is open"], lambda: f"{site.lanes()}")
    assert str(pids[0]) not in await crowd(site)
    go.set()
    answer = await request.end()
    assert answer.status == 200, site.said.lines[-3:]
    assert pids[0] == pids[1]
    await site.is_quiet()


@scenario
async def an_advisory_lock_of_the_session(site: Site) -> None:
    await holds(
        site,
        lambda: run_sql("SELECT pg_advisory_lock(%s, 11)", LOCKS),
        lambda: run_sql("SELECT pg_advisory_unlock(%s, 11)", LOCKS),
        why="an advisory lock is held",
        seen=HAS_LOCK,
    )


@scenario
async def a_lock_that_was_tried(site: Site) -> None:
    await holds(
        site,
        lambda: run_sql("SELECT pg_try_advisory_lock_shared(%s, 2)", LOCKS),
        lambda: run_sql("SELECT pg_advisory_unlock_all()"),
        why="an advisory lock is held",
        seen=HAS_LOCK,
    )


@scenario
async def a_lock_of_a_transaction(site: Site) -> None:
    block = transaction.atomic()

    def begin() -> None:
        block.__enter__()
        run_sql("SELECT pg_advisory_xact_lock(%s, 17)", LOCKS)

    await holds(
        site,
        begin,
        lambda: block.__exit__(None, None, None),
        why="a transaction is open (atomic)",
        seen=HAS_LOCK,
    )


@scenario
async def a_lock_of_a_transaction_that_is_over(site: Site) -> None:
    """Outside of a transaction such a lock is gone at once, and so is its hold on the lane."""

    def lock() -> None:
        run_sql("SELECT pg_advisory_xact_lock(%s, 19)", LOCKS)

    await holds_nothing(site, lock)


@scenario
async def a_lock_that_was_not_got(site: Site) -> None:
    site.witness.execute("SELECT pg_advisory_lock(%s, 23)", [LOCKS])
    try:
        await holds_nothing(site, lambda: run_sql("SELECT pg_try_advisory_lock(%s, 23)", LOCKS))
    finally:
        site.witness.execute("SELECT pg_advisory_unlock(%s, 23)", [LOCKS])


@scenario
async def listen(site: Site) -> None:
    await holds(
        site,
        lambda: run_sql("\n    listen news\n"),
        lambda: run_sql("UNLISTEN *"),
        why="it listens to notifications (LISTEN)",
    )


@scenario
async def iterator(site: Site) -> None:
    from tests.django.lanes.models import Row

    rows: list[Iterator[Any]] = []
    got: list[int] = []

    def begin() -> None:
        rows.append(Row.objects.order_by("id").iterator(chunk_size=7))
        got.extend(row.id for row in islice(rows[0], 10))

    def end() -> None:
        got.extend(row.id for row in rows.pop())

    await holds(site, begin, end, why="a server-side cursor is open")
    assert len(got) == len(set(got)) == ROWS


@scenario
async def rows_of_a_plain_cursor(site: Site) -> None:
    """They are here already: they are read on although the lane has moved on."""
    cursors: list[Any] = []
    got: list[Any] = []

    def ask() -> None:
        cursors.append(connection.cursor())
        cursors[0].execute("SELECT generate_series(1, 10)")
        got.append(cursors[0].fetchone())

    asked, go = asyncio.Event(), asyncio.Event()

    async def reads(request: Any) -> HttpResponse:
        await call(ask)()
        asked.set()
        await soon(go)
        got.extend(await call(cursors[0].fetchall)())
        return HttpResponse("done")

    request = site.start(reads)
    await soon(asked)
    await crowd(site)
    go.set()
    answer = await request.end()
    assert answer.status == 200, site.said.lines[-3:]
    assert got == [(number,) for number in range(1, 11)]
    await site.is_quiet()


@scenario
async def aiterator(site: Site) -> None:
    """Three times as many readers as lanes, and people in between: each gets all rows."""
    from tests.django.lanes.models import Row

    async def reads(request: Any) -> HttpResponse:
        ids = []
        async for row in Row.objects.order_by("id").aiterator(chunk_size=7):
            ids.append(row.id)
            await asyncio.sleep(0)
        assert len(ids) == len(set(ids)) == ROWS
        return HttpResponse("all")

    competing = asyncio.create_task(crowd(site))
    answers = await site.get_all([reads] * 6)
    assert [answer.text for answer in answers] == ["all"] * 6, site.said.lines[-3:]
    await competing
    await site.is_quiet()


@scenario
async def aiterator_in_a_stream(site: Site) -> None:
    """Held from one chunk to the next, however long the client takes for it."""
    from tests.django.lanes.models import Row

    go = asyncio.Event()

    async def streams(request: Any) -> StreamingHttpResponse:
        async def rows() -> AsyncIterator[str]:
            async for row in Row.objects.order_by("id").aiterator(chunk_size=7):
                yield f"{row.value}\n"
                await soon(go)

        return StreamingHttpResponse(rows())

    request = site.start(streams)
    await soon(request.chunk)
    await until(lambda: site.held() == ["a server-side cursor is open"], lambda: f"{site.lanes()}")
    await crowd(site)
    go.set()
    answer = await request.end()
    assert answer.text.count("\n") == ROWS, (answer, site.said.lines[-3:])
    await site.is_quiet()
    await site.meet()


@scenario
async def iterator_in_a_sync_stream(site: Site) -> None:
    """Django reads it in one call, and all of it."""
    from tests.django.lanes.models import Row

    def streams(request: Any) -> StreamingHttpResponse:
        rows = Row.objects.order_by("id").iterator(chunk_size=7)
        return StreamingHttpResponse(f"{row.value}\n" for row in rows)

    answers = await site.get_all([streams] * 6)
    assert [answer.text.count("\n") for answer in answers] == [ROWS] * 6, answers
    await site.is_quiet()


@scenario
async def aiterator_whose_client_leaves(site: Site) -> None:
    from tests.django.lanes.models import Row

    async def streams(request: Any) -> StreamingHttpResponse:
        async def rows() -> AsyncIterator[str]:
            async for row in Row.objects.order_by("id").aiterator(chunk_size=7):
                yield f"{row.value}\n"
                await asyncio.sleep(60)

        return StreamingHttpResponse(rows())

    for _ in range(3):
        request = site.start(streams)
        await soon(request.chunk)
        request.leave()
        await request.end()
    await site.is_quiet()
    await site.meet()


@scenario
async def aiterator_that_is_left_in_the_middle(site: Site) -> None:
    """The lane is free a moment later, although the request goes on."""
    from tests.django.lanes.models import Row

    left, go = asyncio.Event(), asyncio.Event()

    async def looks(request: Any) -> HttpResponse:
        async for row in Row.objects.order_by("id").aiterator(chunk_size=7):
            first = row.value
            break
        left.set()
        await soon(go)
        return HttpResponse(f"{first} {await call(Row.objects.count)()}")

    request = site.start(looks)
    await soon(left)
    await until(site.are_free, lambda: f"{site.lanes()}")
    await site.meet()
    go.set()
    answer = await request.end()
    assert answer.status == 200 and answer.text.endswith(f" {ROWS}"), site.said.lines[-3:]
    await site.is_quiet()


@scenario
async def two_databases(site: Site) -> None:
    """A transaction in the one keeps the thread, and with it the connection to the other."""
    block = transaction.atomic(using="other")
    pids: list[int] = []

    def begin() -> None:
        block.__enter__()
        pids.append(backend("default"))

    await holds(
        site,
        begin,
        lambda: block.__exit__(None, None, None),
        ask=lambda: backend("default"),
        why="a transaction is open (atomic)",
        alias="other",
        seen=IN_TRANSACTION,
    )
    assert site.backends("default") <= site.options.lanes


@scenario
async def both_databases(site: Site) -> None:
    """The lane is given back when the second of two transactions is over, not the first."""
    blocks = {alias: transaction.atomic(using=alias) for alias in ("default", "other")}

    def begin() -> None:
        for block in blocks.values():
            block.__enter__()

    def end_one() -> list[bool]:
        if connections["default"].in_atomic_block:
            blocks["default"].__exit__(None, None, None)
        return [connections[alias].in_atomic_block for alias in blocks]

    await holds(
        site,
        begin,
        lambda: blocks["other"].__exit__(None, None, None),
        ask=end_one,
        why="a transaction is open (atomic)",
        alias="other",
    )


@scenario
async def plain_queries(site: Site) -> None:
    await holds_nothing(site, backend)


@scenario
async def a_statement_that_failed(site: Site) -> None:
    def fails() -> None:
        try:
            run_sql("SELECT 1 / 0")
        except Exception:
            return

    await holds_nothing(site, fails)


@scenario
async def words_about_locks(site: Site) -> None:
    """A statement that only speaks of one costs a question, and holds nothing."""
    await holds_nothing(site, lambda: run_sql("SELECT 'pg_advisory_lock', 'LISTEN'"))


async def holds_nothing(site: Site, job: Callable[[], Any]) -> None:
    """Twice as many requests as lanes have done *job* and are not over: all lanes are free."""
    go = asyncio.Event()
    done = 0
    number = 2 * site.options.lanes

    async def waits(request: Any) -> HttpResponse:
        nonlocal done
        await call(job)()
        done += 1
        await soon(go)
        return HttpResponse(str(await call(backend)()))

    requests = [site.start(waits) for _ in range(number)]
    await until(lambda: done == number, lambda: f"{site.lanes()}")
    await until(site.are_free, lambda: f"{site.lanes()}")
    await site.meet()
    go.set()
    answers = [await request.end() for request in requests]
    assert [answer.status for answer in answers] == [200] * number, site.said.lines[-3:]
    await site.is_quiet()


@scenario
async def a_sync_view(site: Site) -> None:
    """It is one call from its beginning to its end, whatever it does in between."""
    inside = threading.Barrier(site.options.lanes)

    def view(request: Any) -> HttpResponse:
        pids = {backend()}
        with transaction.atomic():
            inside.wait(10)
            pids.add(backend())
        pids.add(backend())
        return HttpResponse(str(len(pids)))

    answers = await site.get_all([view] * site.options.lanes * 3)
    assert [answer.text for answer in answers] == ["1"] * len(answers), answers
    await site.is_quiet()


@scenario
async def autocommit_off_between_two_transactions(site: Site) -> None:
    """Nothing is open on the wire, but what comes next must not be committed by itself."""
    off, go = asyncio.Event(), asyncio.Event()
    found = []

    def end() -> None:
        run_sql("INSERT INTO lanes_rows (value) VALUES (%s)", "never")
        found.append(transaction.get_autocommit())
        transaction.rollback()
        transaction.set_autocommit(True)

    async def manual(request: Any) -> HttpResponse:
        await call(transaction.set_autocommit)(False)
        await call(run_sql)("SELECT 1")
        await call(transaction.commit)()
        off.set()
        await soon(go)
        await call(end)()
        return HttpResponse("done")

    request = site.start(manual)
    await soon(off)
    await crowd(site)
    go.set()
    answer = await request.end()
    assert answer.status == 200, answer
    assert found == [False]
    assert site.ask("SELECT count(*) FROM lanes_rows WHERE value = 'never'") == [0]
    await site.is_quiet()


@scenario
async def a_lock_in_other_letters(site: Site) -> None:
    await holds(
        site,
        lambda: run_sql("Select Pg_Advisory_Lock(%s, 13)", LOCKS),
        lambda: run_sql("Select Pg_Advisory_Unlock(%s, 13)", LOCKS),
        why="an advisory lock is held",
        seen=HAS_LOCK,
    )
