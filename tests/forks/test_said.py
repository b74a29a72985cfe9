"""What was open before a fork says so in the child: once, at its first use there, and not in a
child that leaves it alone."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool, ConnectionPool, NullConnectionPool

import lifeguard
from lifeguard._core import fork
from tests.core.helpers import in_fork
from tests.forks.asking import aask, ask

HERE = __file__


@pytest.fixture
def guard() -> Iterator[lifeguard.Lifeguard]:
    guard = lifeguard.Lifeguard(handle_sigterm=False, grace=3, open_timeout=10)
    yield guard
    guard._worker.end()


class Said(logging.Handler):
    """What the logger lifeguard.worker was given."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


@pytest.fixture
def said() -> Iterator[list[str]]:
    handler = Said()
    logger = logging.getLogger("lifeguard.worker")
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)


def line() -> int:
    """The number of the line that calls this."""
    import sys

    return sys._getframe(1).f_lineno


@pytest.mark.parametrize("cls", [ConnectionPool, NullConnectionPool])
def test_a_pool_says_so_once(
    cls: Any, guard: lifeguard.Lifeguard, said: list[str], dsn: str
) -> None:
    """Which pool, where it came to lifeguard, which process has it open, what happens now, and
    what to do: once, however often it is used, from however many threads at once."""
    pool = cls(dsn, open=True, min_size=0, max_size=2, timeout=10, name="shop")
    made = f"{HERE}:{line() + 1}"
    guard.adopt(pool)
    parent = os.getpid()

    def child() -> list[str]:
        assert said == []
        together = threading.Barrier(4)

        def first_use(number: int) -> tuple[int, int]:
            together.wait(10)
            return ask(pool, number)

        with ThreadPoolExecutor(4) as executor:
            answers = list(executor.map(first_use, range(4)))
        assert [asked for asked, _ in answers] == [0, 1, 2, 3]
        with guard.worker(resources=[pool]):
            ask(pool, 1)
        return said

    ask(pool, 1)
    (line_,) = in_fork(child)
    before, _, after = line_.partition(" when this process, ")
    assert before == f"WARNING pool 'shop' (made at {made}) was open in process {parent}"
    assert after.partition(", ")[2] == (
        "was forked from it: here it opens anew. A process that only forks needs no connections: "
        "make it with open=False and pass it to lifeguard, or declare it with @lifeguard.resource."
    )
    assert said == []
    pool.close()


def test_an_async_pool_says_so_once(guard: lifeguard.Lifeguard, said: list[str], dsn: str) -> None:
    """Also where several tasks use it first, at the same time."""
    pool = AsyncConnectionPool(dsn, open=False, min_size=1, max_size=2, timeout=10, name="shop")

    def child() -> Any:
        async def main() -> Any:
            answers = await asyncio.gather(*(aask(pool, number) for number in range(4)))
            await pool.close()  # a loop that ends in the middle of its connecting may hang
            return answers

        answers = asyncio.run(main())
        return [[asked for asked, _ in answers], said]

    async def main() -> Any:
        async with guard.worker(resources=[pool]):
            await aask(pool, 1)
            return in_fork(child)

    answers, lines = asyncio.run(main())
    assert answers == [0, 1, 2, 3]
    assert len(lines) == 1
    assert lines[0].startswith("WARNING pool 'shop' (made at ")


def test_a_child_that_leaves_it_alone_says_nothing(
    guard: lifeguard.Lifeguard, said: list[str], dsn: str
) -> None:
    """Children that do other things are many, and none of them has a problem."""
    pool = ConnectionPool(dsn, open=False, min_size=1, max_size=1)

    @guard.resource
    def other() -> Iterator[int]:
        yield os.getpid()

    def child() -> list[str]:
        with guard.worker(), guard.unit():
            assert other.get() == os.getpid()
        guard._worker.end()
        return said

    with guard.worker(resources=[pool]):
        assert in_fork(child) == []


def test_a_pool_that_was_not_open_says_nothing(
    guard: lifeguard.Lifeguard, said: list[str], dsn: str
) -> None:
    """Made at import with open=False, and opened after the fork: as it should be."""
    pool = ConnectionPool(dsn, open=False, min_size=1, max_size=1, timeout=10)
    guard.adopt(pool)

    def child() -> Any:
        with guard.worker(resources=[pool]):
            return [ask(pool, 1)[0], said]

    assert in_fork(child) == [1, []]


def test_a_connection_says_so_and_refuses(
    guard: lifeguard.Lifeguard, said: list[str], dsn: str
) -> None:
    """A connection cannot be made anew, so every use of it raises WrongProcessError, which names
    the process it belongs to; the log says it once. What it cannot do at all is a cancel."""

    @guard.resource
    def db() -> Iterator[Any]:
        with psycopg.connect(dsn, autocommit=True) as conn:
            yield conn

    def child() -> Any:
        tried: list[str] = []
        for use in (
            lambda: kept.execute("SELECT 1"),
            lambda: kept.cursor().execute("SELECT 1"),
            lambda: cursor.execute("SELECT 1"),
            kept.cancel,
            kept.cancel_safe,
        ):
            with pytest.raises((lifeguard.WrongProcessError, psycopg.OperationalError)) as caught:
                use()
            tried.append(f"{type(caught.value).__name__}: {caught.value}")
        closed = kept.closed
        kept.close()
        return [tried, said, closed]

    parent = os.getpid()
    with guard.worker():
        kept = db.get()
        cursor = kept.cursor()
        tried, lines, closed = in_fork(child)
        assert kept.execute("SELECT 2").fetchone() == (2,)
    assert closed is True
    assert [text.partition(":")[0] for text in tried] == ["WrongProcessError"] * 5
    assert all(f"belongs to process {parent}: get one of this process" in text for text in tried)
    assert len(lines) == 1
    assert lines[0].startswith(f"WARNING psycopg connection (made at {HERE}:")
    assert "Declare it with @lifeguard.resource" in lines[0]


def test_an_async_connection_refuses(guard: lifeguard.Lifeguard, said: list[str], dsn: str) -> None:
    """The same on an event loop of the child's own."""

    @guard.resource
    async def db() -> AsyncIterator[Any]:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            yield conn

    def child(kept: Any) -> Any:
        async def main() -> str:
            with pytest.raises(lifeguard.WrongProcessError) as caught:
                await kept.execute("SELECT 1")
            await kept.close()
            return str(caught.value)

        return [asyncio.run(main()), said]

    async def main() -> Any:
        async with guard.worker():
            kept = db.get()
            refused = in_fork(lambda: child(kept))
            assert await (await kept.execute("SELECT 2")).fetchone() == (2,)
            return refused

    message, lines = asyncio.run(main())
    assert "belongs to process" in message
    assert len(lines) == 1


def test_a_connection_that_was_borrowed_at_the_fork_refuses(
    guard: lifeguard.Lifeguard, dsn: str
) -> None:
    """The pool works in the child, the connection that was out does not, and says of which pool it
    is. Leaving the parent's block there does no harm."""
    pool = ConnectionPool(dsn, open=False, min_size=1, max_size=2, timeout=10, name="shop")

    def child() -> Any:
        with pytest.raises(lifeguard.WrongProcessError) as caught:
            conn.execute("SELECT 1")
        block.__exit__(None, None, None)
        return [str(caught.value), ask(pool, 7)[0]]

    with guard.worker(resources=[pool]), guard.unit():
        block = pool.connection()
        conn = block.__enter__()
        conn.execute("CREATE TEMP TABLE forked (x int)")
        message, asked = in_fork(child)
        assert asked == 7
        assert "connection of pool 'shop'" in message
        assert conn.execute("SELECT count(*) FROM forked").fetchone() == (0,)
        block.__exit__(None, None, None)


def test_a_connection_that_is_passed_to_the_child_as_a_resource(
    guard: lifeguard.Lifeguard, dsn: str
) -> None:
    """It is no definition, so that the child cannot open its own: its worker does not open."""
    with psycopg.connect(dsn, autocommit=True) as conn, guard.worker(resources=[conn]):

        def child() -> str:
            with (
                pytest.raises(lifeguard.WrongProcessError) as caught,
                guard.worker(resources=[conn]),
            ):
                pass
            return str(caught.value)

        assert f"belongs to process {os.getpid()}" in in_fork(child)
        assert conn.execute("SELECT 2").fetchone() == (2,)


def test_an_object_of_which_nothing_is_known(guard: lifeguard.Lifeguard, said: list[str]) -> None:
    """Something with open() and close(): the child opens it, as it is asked to, and says that it
    may be the parent's."""

    class Client:
        opened = 0

        def open(self) -> None:
            self.opened += 1

        def close(self) -> None:
            self.opened -= 1

    client = Client()

    def child() -> Any:
        with guard.worker(resources=[client]):
            pass
        with guard.worker(resources=[client]):
            pass
        return said

    with guard.worker(resources=[client]):
        (line_,) = in_fork(child)
    assert line_.startswith(f"WARNING Client (made at {HERE}:")
    assert f"was open in process {os.getpid()}" in line_
    assert "does not know how to make it anew" in line_


def test_what_went_wrong_in_the_fork_is_said_after_it(
    guard: lifeguard.Lifeguard, said: list[str]
) -> None:
    """Somebody who cannot be told of the fork does not keep the others from it; the first worker
    of the child says it."""

    class Broken:
        def after_fork(self) -> None:
            raise ValueError("no way")

        def __repr__(self) -> str:
            return "<broken>"

    broken = Broken()
    fork.watch(broken)

    def child() -> Any:
        before = list(said)
        with guard.worker():
            pass
        return [before, said]

    with guard.worker():
        before, lines = in_fork(child)
    assert before == []
    assert len(lines) == 1
    assert lines[0].startswith("ERROR <broken> could not forget what it had before the fork")


@pytest.mark.parametrize("what", ["unit", "worker", "resource", "callback", "release"])
def test_what_belongs_to_the_parent_raises(what: str, guard: lifeguard.Lifeguard, dsn: str) -> None:
    """A unit, a worker and a resource of the parent's say in the child whose they are."""

    @guard.resource
    def db() -> Iterator[int]:
        yield 1

    def child() -> str:
        uses: dict[str, Any] = {
            "unit": lambda: unit.callback(print),
            "worker": lambda: worker.callback(print),
            "resource": db.get,
            "callback": lambda: guard.callback(print),
            "release": guard.release,
        }
        with pytest.raises(lifeguard.WrongProcessError) as caught:
            uses[what]()
        return str(caught.value)

    with guard.worker() as worker, guard.unit("job") as unit:
        message = in_fork(child)
    assert "was forked from" in message or "before the fork" in message
    assert "with lifeguard." in message or "open one of your own" in message
