"""A resource: an inert definition that is opened once per worker."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import lifeguard
from lifeguard import Lifeguard, NotOpenError
from tests.core.helpers import AsyncDoor, Log, SyncDoor, adefine, define, in_fork, run

HERE = re.escape(__file__)


class Pool:
    """Opens and closes by name, as most things do."""

    def __init__(self, log: Log, name: str = "pool") -> None:
        self.log = log
        self.name = name

    def open(self) -> None:
        self.log.append(f"open {self.name}")

    def close(self) -> None:
        self.log.append(f"close {self.name}")


class AsyncPool:
    """The same where opening has to be awaited."""

    def __init__(self, log: Log) -> None:
        self.log = log

    async def open(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.log.append("aopen")

    async def close(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.log.append("aclose by the name of close")


class AClosing(AsyncPool):
    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.log.append("aclose")


# -- what can be a resource -----------------------------------------------------------------------


def sync_definitions(guard: Lifeguard, log: Log) -> dict[str, Callable[[], Any]]:
    def generator() -> Iterator[str]:
        log.append("enter x")
        yield "x"
        log.append("exit x")

    def returns_manager() -> SyncDoor:
        return SyncDoor(log, "x")

    return {
        "a generator function": lambda: guard.resource(generator),
        "a contextmanager function": lambda: guard.resource(contextlib.contextmanager(generator)),
        "a function that returns a manager": lambda: guard.resource(returns_manager),
        "an object that is a manager": lambda: guard.adopt(SyncDoor(log, "x")),
    }


@pytest.mark.parametrize("kind", list(sync_definitions(Lifeguard(), [])))
def test_sync_resources_come_in_many_shapes(
    kind: str, backend: str, guard: Lifeguard, log: Log
) -> None:
    """Each opens in a sync and in an async worker, and get() gives what it yielded."""
    resource = sync_definitions(guard, log)[kind]()
    with guard.worker(resources=[resource]):
        log.append(resource.get())

    async def main() -> None:
        async with guard.worker(resources=[resource]):
            log.append(resource.get())

    run(backend, main)
    assert log == ["enter x", "x", "exit x"] * 2


def async_definitions(guard: Lifeguard, log: Log) -> dict[str, Callable[[], Any]]:
    async def generator() -> AsyncIterator[str]:
        await anyio.lowlevel.checkpoint()
        log.append("enter x")
        yield "x"
        await anyio.lowlevel.checkpoint()
        log.append("exit x")

    def returns_manager() -> AsyncDoor:
        return AsyncDoor(log, "x")

    return {
        "an async generator function": lambda: guard.resource(generator),
        "an asynccontextmanager function": lambda: guard.resource(
            contextlib.asynccontextmanager(generator)
        ),
        "a function that returns a manager": lambda: guard.resource(returns_manager),
        "an object that is a manager": lambda: guard.adopt(AsyncDoor(log, "x")),
    }


@pytest.mark.parametrize("kind", list(async_definitions(Lifeguard(), [])))
def test_async_resources_come_in_many_shapes(
    kind: str, backend: str, guard: Lifeguard, log: Log
) -> None:
    """Each opens in an async worker; a sync one says that it is async, and what to do."""
    resource = async_definitions(guard, log)[kind]()

    async def main() -> None:
        async with guard.worker(resources=[resource]):
            log.append(resource.get())

    run(backend, main)
    with pytest.raises(TypeError, match=r"resource .* is async: .*`async with lifeguard\.worker"):
        with guard.worker(resources=[resource]):
            log.append("never")
    assert log == ["enter x", "x", "exit x"]


def test_an_object_opens_and_closes_by_name(backend: str, guard: Lifeguard, log: Log) -> None:
    """open() and close(), aclose() where there is a loop; awaited if they have to be."""
    pool, async_pool, aclosing = Pool(log), AsyncPool(log), AClosing(log)
    with guard.worker(resources=[pool]) as worker:
        assert list(worker.values.values()) == [pool]

    async def main() -> None:
        async with guard.worker(resources=[pool, async_pool, aclosing]):
            log.append("work")

    run(backend, main)
    assert log == [
        *["open pool", "close pool"],
        *["open pool", "aopen", "aopen", "work"],
        *["aclose", "aclose by the name of close", "close pool"],
    ]


def test_an_object_that_opens_asynchronously_is_refused_by_a_sync_worker(
    guard: Lifeguard, log: Log
) -> None:
    """TypeError says so; the coroutine is not left behind."""
    with pytest.raises(TypeError, match=r"opens asynchronously: .*`async with lifeguard\.worker"):
        with guard.worker(resources=[AsyncPool(log)]):
            log.append("never")
    assert log == []


def test_entering_and_leaving_happen_in_one_task(backend: str, guard: Lifeguard) -> None:
    """Task groups insist on it, so a resource may hold one open."""
    seen: list[str] = []

    @guard.resource
    async def group() -> AsyncIterator[Any]:
        async with anyio.create_task_group() as tasks:
            yield tasks
            seen.append("left")
            tasks.cancel_scope.cancel()

    async def main() -> None:
        async with guard.worker():
            group.get().start_soon(anyio.sleep_forever)

    run(backend, main)
    assert seen == ["left"]


WRONG: dict[str, Any] = {
    "None": None,
    "a string": "postgresql://",
    "a number": 3,
    "a class": Pool,
    "a generator": (x for x in ()),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_a_definition_is_refused_at_once(what: str, guard: Lifeguard) -> None:
    """TypeError shows it, and says what to decorate."""
    wanted = r"@lifeguard\.resource cannot open .*: decorate a generator function that yields"
    with pytest.raises(TypeError, match=wanted):
        guard.resource(WRONG[what])
    with guard.worker():
        pass  # and nothing of it was kept


def test_more_that_cannot_be_a_definition(guard: Lifeguard, log: Log) -> None:
    """A coroutine function yields nothing, and one decoration is enough."""

    async def connect() -> None: ...

    with pytest.raises(TypeError, match=r"connect.* is a coroutine function and yields nothing"):
        guard.resource(connect)  # type: ignore[call-overload]
    resource = define(guard, log, "db")
    with pytest.raises(
        TypeError, match=r"resource 'db' .* is a resource already: decorate it once"
    ):
        guard.resource(resource)


def test_a_function_that_returns_no_manager_is_told_to_yield(guard: Lifeguard) -> None:
    """The mistake of returning the value instead of yielding it has an error of its own."""

    @guard.resource  # type: ignore[call-overload, untyped-decorator]
    def db() -> Any:
        return 3

    wanted = r"resource 'db' .* returned int, which is not a context manager: `yield` the value"
    with pytest.raises(TypeError, match=wanted), guard.worker():
        pass


def test_an_object_that_neither_opens_nor_closes_is_refused(guard: Lifeguard) -> None:
    """TypeError names it and says what to pass."""
    wanted = r"is not a resource: pass an object with open\(\) and close\(\), or a context manager"
    with pytest.raises(TypeError, match="3 " + wanted):
        guard.worker(resources=[3])
    with pytest.raises(TypeError, match=wanted):
        guard.worker(resources=[object()])


# -- inert ----------------------------------------------------------------------------------------


def test_nothing_happens_at_the_definition(guard: Lifeguard, log: Log) -> None:
    """A definition runs nothing: not when it is made, not when it is adopted."""
    resource = define(guard, log, "db")
    guard.adopt(SyncDoor(log, "door"))
    guard.worker()
    assert log == []
    assert resource.name == "db"
    assert repr(resource).startswith("<lifeguard.Resource 'db' made at ")


def test_an_object_is_one_resource_whoever_passes_it(guard: Lifeguard, log: Log) -> None:
    """Two apps that share a pool share its resource: opened once."""
    pool = Pool(log)
    assert guard.adopt(pool) is guard.adopt(pool)
    assert guard.adopt(Pool(log)) is not guard.adopt(pool)
    with guard.worker(resources=[pool, pool]), guard.worker(resources=[pool]):
        pass
    assert log == ["open pool", "close pool"]


def test_a_resource_of_another_guard_is_refused(guard: Lifeguard, log: Log) -> None:
    """It would be opened by neither: TypeError says to use one guard for both."""
    other = Lifeguard()
    resource = define(other, log, "db")
    with pytest.raises(TypeError, match=r"resource 'db' .* was declared on another Lifeguard"):
        guard.worker(resources=[resource])


# -- get ------------------------------------------------------------------------------------------


def test_get_outside_a_worker_says_what_to_do(guard: Lifeguard, log: Log) -> None:
    """NotOpenError names the resource, its place, the state of the worker, and the way out."""
    resource = define(guard, log, "db")
    wanted = (
        r"resource 'db' \(made at .*helpers\.py:\d+\) is not open: the worker is {}\. "
        r"Use it inside a request or a task, or open the worker around your code: "
        r"`with lifeguard\.worker\(\):`"
    )
    with pytest.raises(NotOpenError, match=wanted.format("not open yet")):
        resource.get()
    with guard.worker():
        assert resource.get() == "db"
    with pytest.raises(NotOpenError, match=wanted.format("closed")):
        resource.get()


def test_get_while_the_worker_opens_gives_what_is_open_already(guard: Lifeguard, log: Log) -> None:
    """A resource may use those that were declared before it, and not those after."""
    first = define(guard, log, "first")
    third: Any = None

    @guard.resource
    def second() -> Iterator[str]:
        log.append(f"second uses {first.get()}")
        with pytest.raises(NotOpenError, match="the worker is opening"):
            third.get()
        yield "second"
        log.append(f"second still uses {first.get()}")

    third = define(guard, log, "third")
    with guard.worker():
        pass
    assert log == [
        "open first",
        "second uses first",
        "open third",
        "close third",
        "second still uses first",
        "close first",
    ]


def test_get_in_a_forked_child_is_refused_until_it_opens_its_own(
    guard: Lifeguard, log: Log
) -> None:
    """WrongProcessError names the resource, the process it belongs to, and what to do."""
    resource = define(guard, log, "db")

    def child() -> list[str]:
        try:
            resource.get()
        except lifeguard.WrongProcessError as exc:
            refused = str(exc)
        with guard.worker():
            log.append(resource.get())
        return [refused, *log]

    with guard.worker() as worker:
        refused, *events = in_fork(child)
        assert re.match(
            rf"resource 'db' \(made at .*\) was opened before the fork and belongs to process "
            rf"{worker.pid}: use it inside a request, a task or `with lifeguard\.worker\(\):`",
            refused,
        )
        assert events == ["open db", "open db", "db", "close db"]
        assert resource.get() == "db"
    assert log == ["open db", "close db"]


def test_an_async_resource_says_where_it_was_made(backend: str, guard: Lifeguard, log: Log) -> None:
    """Errors point at the code of the resource, also through contextlib's decorators."""

    @guard.resource
    @contextlib.asynccontextmanager
    async def db() -> AsyncIterator[int]:
        yield 1

    assert re.fullmatch(HERE + r":\d+", db.made)
    assert re.fullmatch(HERE + r":\d+", guard.adopt(Pool(log)).made)
    adefine(guard, log, "other")

    async def main() -> None:
        async with guard.worker():
            assert db.get() == 1

    run(backend, main)
