"""A worker: the lifetime of a process that does work."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
import uvloop

import lifeguard
from lifeguard import ClosedError, CloseErrors, Lifeguard, NotOpenError
from lifeguard._core.clock import now
from lifeguard._core.lifetime import CLOSED, CLOSING, OPENING
from tests.core.helpers import AsyncDoor, Log, SyncDoor, adefine, define, race, run, told

Make = Callable[..., Lifeguard]


def wait_until(condition: Callable[[], object], what: str, *, within: float = 10.0) -> None:
    """Watch another thread until *condition* holds."""
    deadline = now() + within
    pause = threading.Event()
    while not condition():
        assert now() < deadline, f"waited in vain for {what}"
        pause.wait(0.001)


# -- opening and closing --------------------------------------------------------------------------


def test_resources_open_in_order_and_close_in_reverse(guard: Lifeguard, log: Log) -> None:
    """A sync worker opens in the order of declaration, and closes the last one first."""
    first, second = define(guard, log, "first"), define(guard, log, "second")
    with guard.worker():
        log.append(f"work with {first.get()} and {second.get()}")
    assert log == [
        "open first",
        "open second",
        "work with first and second",
        "close second",
        "close first",
    ]


def test_an_async_worker_opens_both_kinds_in_one_order(
    backend: str, guard: Lifeguard, log: Log
) -> None:
    """Sync and async resources stand on one stack, on every event loop."""
    define(guard, log, "sync 1")
    adefine(guard, log, "async 2")
    define(guard, log, "sync 3")

    async def main() -> None:
        async with guard.worker():
            log.append("work")

    run(backend, main)
    assert log == [
        "open sync 1",
        "open async 2",
        "open sync 3",
        "work",
        "close sync 3",
        "close async 2",
        "close sync 1",
    ]


def test_a_unit_ends_before_the_resources_it_uses(backend: str, guard: Lifeguard, log: Log) -> None:
    """A worker that closes waits for its running units, then closes what they used."""
    adefine(guard, log, "db")

    async def main() -> None:
        inside, finish = anyio.Event(), anyio.Event()

        async def work() -> None:
            async with guard.unit():
                guard.callback(log.append, "unit ends")
                inside.set()
                await finish.wait()

        async def close(block: Any) -> None:
            log.append("worker begins to close")
            await block.__aexit__(None, None, None)

        block = guard.worker()
        worker = await block.__aenter__()
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await inside.wait()
            group.start_soon(close, block)
            with anyio.fail_after(10):
                while worker.state is not CLOSING:
                    await anyio.lowlevel.checkpoint()
            log.append("unit may go")
            finish.set()

    run(backend, main)
    assert log == [
        "open db",
        "worker begins to close",
        "unit may go",
        "unit ends",
        "close db",
    ]


def test_a_sync_worker_waits_for_the_units_of_other_threads(guard: Lifeguard, log: Log) -> None:
    """The same with threads and without any event loop."""
    define(guard, log, "db")
    inside, finish = threading.Event(), threading.Event()

    def work() -> None:
        with guard.unit():
            guard.callback(log.append, "unit ends")
            inside.set()
            assert finish.wait(10)

    block = guard.worker()
    worker = block.__enter__()
    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    closer = threading.Thread(target=block.__exit__, args=(None, None, None))
    closer.start()
    wait_until(lambda: worker.state is CLOSING, "the worker to close")
    log.append("unit may go")
    finish.set()
    thread.join(10)
    closer.join(10)
    assert not closer.is_alive()
    assert log == ["open db", "unit may go", "unit ends", "close db"]


class GivenUp(lifeguard.Observer):
    def __init__(self, log: Log) -> None:
        self.log = log
        self.ages: list[float] = []

    def unit_given_up(self, unit: lifeguard.Unit, age: float) -> None:
        self.log.append(f"given up {unit.name}")
        self.ages.append(age)


def assert_named(caplog: pytest.LogCaptureFixture, place: str) -> None:
    """The log says which unit was given up on, where it began, its age, and what grace is."""
    (record,) = [record for record in caplog.records if record.name == "lifeguard.worker"]
    assert record.levelno == logging.WARNING
    pattern = rf"the worker of process {os.getpid()} closes although unit '{re.escape(place)}:\d+' "
    pattern += r"is still running, \d+\.\d s after it began: it was given 0\.5 s to end \(grace\)"
    assert re.search(pattern, record.getMessage())
    assert record.lifeguard_unit.startswith(place)  # type: ignore[attr-defined]
    # uvloop's timers are a millisecond coarse
    assert record.lifeguard_age >= 0.45  # type: ignore[attr-defined]


def test_a_sync_worker_names_the_units_it_gives_up_on(
    make_guard: Make, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """After the grace it says which unit still ran, since when and from where; and closes."""
    observer = GivenUp(log)
    guard = make_guard(grace=0.5, observers=[observer])
    define(guard, log, "db")
    inside, finish = threading.Event(), threading.Event()

    def work() -> None:
        with guard.unit():
            guard.callback(log.append, "unit ends")
            inside.set()
            assert finish.wait(10)

    with guard.worker():
        thread = threading.Thread(target=work)
        thread.start()
        assert inside.wait(10)
    finish.set()
    thread.join(10)
    given_up = log.pop(1)
    assert given_up.startswith(f"given up {__file__}:")
    assert log == ["open db", "close db", "unit ends"]
    assert observer.ages[0] > 0
    assert_named(caplog, __file__)


def test_a_named_unit_is_given_up_on_with_its_place(
    make_guard: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """A name says nothing of where the unit began, so the log does."""
    guard = make_guard(grace=0.3)
    inside, finish = threading.Event(), threading.Event()

    def work() -> None:
        with guard.unit("import"):
            guard.callback(str)
            inside.set()
            assert finish.wait(10)

    with guard.worker():
        thread = threading.Thread(target=work)
        thread.start()
        assert inside.wait(10)
    finish.set()
    thread.join(10)
    assert re.search(rf"unit 'import' .* began at {re.escape(__file__)}:\d+", caplog.text)


def test_an_async_worker_names_the_units_it_gives_up_on(
    backend: str, make_guard: Make, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """The same where there is an event loop."""
    guard = make_guard(grace=0.5, observers=[GivenUp(log)])
    adefine(guard, log, "db")

    async def main() -> None:
        inside, finish = anyio.Event(), anyio.Event()

        async def work() -> None:
            async with guard.unit():
                guard.callback(log.append, "unit ends")
                inside.set()
                await finish.wait()

        async with anyio.create_task_group() as group:
            async with guard.worker():
                group.start_soon(work)
                await inside.wait()
            finish.set()

    run(backend, main)
    given_up = log.pop(1)
    assert given_up.startswith(f"given up {__file__}:")
    assert log == ["open db", "close db", "unit ends"]
    assert_named(caplog, __file__)


def test_units_are_waited_for_together(make_guard: Make) -> None:
    """Many hung units cost one grace, not one each."""
    guard = make_guard(grace=2)
    finish = threading.Event()
    inside = threading.Barrier(6)

    def work() -> None:
        with guard.unit():
            inside.wait(10)
            assert finish.wait(30)

    with guard.worker():
        threads = [threading.Thread(target=work) for _ in range(5)]
        for thread in threads:
            thread.start()
        inside.wait(10)
        began = now()
    took = now() - began
    finish.set()
    for thread in threads:
        thread.join(10)
    assert 1.9 <= took < 8


def test_a_unit_that_closes_its_own_worker_does_not_wait_for_itself(
    guard: Lifeguard, log: Log
) -> None:
    """`with worker()` ended from inside a unit of it goes on at once."""
    guard.grace = 30
    define(guard, log, "db")
    block = guard.worker()
    block.__enter__()
    with guard.unit():
        began = now()
        block.__exit__(None, None, None)
        assert now() - began < 20
        log.append("unit goes on")
    assert log == ["open db", "close db", "unit goes on"]


def test_an_async_unit_that_closes_its_own_worker_does_not_wait_for_itself(
    backend: str, guard: Lifeguard, log: Log
) -> None:
    """The same where there is an event loop."""
    guard.grace = 30
    adefine(guard, log, "db")

    async def main() -> None:
        block = guard.worker()
        await block.__aenter__()
        async with guard.unit():
            began = now()
            await block.__aexit__(None, None, None)
            assert now() - began < 20
            log.append("unit goes on")

    run(backend, main)
    assert log == ["open db", "close db", "unit goes on"]


def test_errors_of_resources_come_out_together(guard: Lifeguard, log: Log) -> None:
    """All resources close, whatever the others raise; the group names the worker."""
    define(guard, log, "a", leave=ValueError("a"))
    define(guard, log, "b")
    define(guard, log, "c", leave=OSError("c"))
    with pytest.raises(CloseErrors, match="the worker of process") as caught, guard.worker():
        pass
    assert [repr(exc) for exc in caught.value.exceptions] == ["OSError('c')", "ValueError('a')"]
    assert log == ["open a", "open b", "open c", "close c", "close b", "close a"]


def test_errors_of_resources_do_not_replace_the_error_of_the_block(
    backend: str, guard: Lifeguard, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """What the block raised comes out unchanged; what closing raised is logged."""
    define(guard, log, "a", leave=ValueError("closing"))
    with pytest.raises(KeyError, match="block"), guard.worker():
        raise KeyError("block")

    async def main() -> None:
        async with guard.worker():
            raise KeyError("block")

    with pytest.raises(KeyError, match="block"):
        run(backend, main)
    assert log == ["open a", "close a"] * 2
    assert [record.name for record in caplog.records] == ["lifeguard.worker"] * 2
    assert "ValueError" in caplog.text


# -- failing to open ------------------------------------------------------------------------------


def failing(guard: Lifeguard, log: Log) -> dict[str, bool]:
    """A resource that opens only when it is told that it may."""
    may = {"open": False}

    def broken() -> Iterator[int]:
        log.append("open broken")
        if not may["open"]:
            raise ConnectionRefusedError("no answer from postgresql://u:s3cret@db/app")
        yield 3
        log.append("close broken")

    guard.resource(broken)
    return may


def test_a_resource_that_fails_to_open_closes_those_before_it(guard: Lifeguard, log: Log) -> None:
    """The error keeps its type and has a note that names the resource; nothing is left open."""
    define(guard, log, "first")
    may = failing(guard, log)
    define(guard, log, "third")
    with pytest.raises(ConnectionRefusedError) as caught, guard.worker():
        log.append("never")
    assert log == ["open first", "open broken", "close first"]
    (note,) = caught.value.__notes__
    assert note.startswith("while resource 'broken' (made at ")
    assert note.endswith(f" was opened in process {os.getpid()}")
    log.clear()
    may["open"] = True
    with guard.worker():
        log.append("work")
    assert log[-4:] == ["work", "close third", "close broken", "close first"]


def test_an_async_worker_that_fails_to_open_closes_what_was_open(
    backend: str, guard: Lifeguard, log: Log
) -> None:
    """The same where there is an event loop, with both kinds of resources."""
    adefine(guard, log, "first")
    may = failing(guard, log)

    async def main() -> None:
        with pytest.raises(ConnectionRefusedError, match="no answer") as caught:
            async with guard.worker():
                log.append("never")
        assert "while resource 'broken' (made at " in told(caught.value)
        may["open"] = True
        async with guard.worker():
            log.append("work")

    run(backend, main)
    assert log == [
        "open first",
        "open broken",
        "close first",
        "open first",
        "open broken",
        "work",
        "close broken",
        "close first",
    ]


def test_an_error_while_closing_after_a_failed_open_is_reported_and_not_raised(
    guard: Lifeguard, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason why the worker did not open is what people have to see."""
    define(guard, log, "first", leave=ValueError("closing"))
    failing(guard, log)
    with pytest.raises(ConnectionRefusedError), guard.worker():
        pass
    assert log == ["open first", "open broken", "close first"]
    assert "ValueError" in caplog.text


def test_a_sync_worker_refuses_an_async_resource(guard: Lifeguard, log: Log) -> None:
    """TypeError names the resource and says what to do; what was open is closed again."""
    define(guard, log, "first")
    adefine(guard, log, "pool")
    wanted = (
        r"resource 'pool' \(made at .*test_worker|helpers.*\) is async: .*`async with lifeguard"
    )
    with pytest.raises(TypeError, match=wanted), guard.worker():
        log.append("never")
    assert log == ["open first", "close first"]


def test_a_resource_without_a_yield_is_named(backend: str, guard: Lifeguard, log: Log) -> None:
    """A generator function that yields never: LifeguardError says so, and what to write."""
    stop = {"now": True}

    @guard.resource
    def never() -> Iterator[int]:
        log.append("ran")
        if stop["now"]:
            return
        yield 1

    wanted = r"resource 'never' \(made at .*\) ended without a yield: `yield` the opened value once"
    with pytest.raises(lifeguard.LifeguardError, match=wanted), guard.worker():
        log.append("not reached")

    other = Lifeguard(handle_sigterm=False)

    @other.resource
    async def anever() -> AsyncIterator[int]:
        log.append("ran too")
        if stop["now"]:
            return
        yield 1

    async def main() -> None:
        async with other.worker():
            log.append("not reached")

    with pytest.raises(lifeguard.LifeguardError, match=wanted.replace("never", "anever")):
        run(backend, main)
    assert log == ["ran", "ran too"]


def test_a_resource_that_yields_twice_is_named(backend: str, guard: Lifeguard, log: Log) -> None:
    """Its generator is closed, so that its `finally` runs, and the error says what is wrong."""

    @guard.resource
    def twice() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            log.append("finally")

    wanted = r"resource 'twice' \(made at .*\) yielded twice: `yield` once"
    with pytest.raises(CloseErrors) as caught, guard.worker():
        log.append("work")
    assert re.search(wanted, str(caught.value.exceptions[0]))

    other = Lifeguard(handle_sigterm=False)

    @other.resource
    async def atwice() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await anyio.lowlevel.checkpoint()
            log.append("async finally")

    async def main() -> None:
        async with other.worker():
            log.append("work")

    with pytest.raises(CloseErrors) as caught:
        run(backend, main)
    assert re.search(wanted.replace("twice'", "atwice'"), str(caught.value.exceptions[0]))
    assert log == ["work", "finally", "work", "async finally"]


# -- one after another, and several holders -------------------------------------------------------


def test_workers_follow_one_another(backend: str, guard: Lifeguard, log: Log) -> None:
    """The same definitions serve one fresh worker after the other, sync or async, any loop."""
    resource = define(guard, log, "db")
    workers = []

    async def main() -> None:
        async with guard.worker() as worker:
            workers.append(worker)
            assert resource.get() == "db"

    for _ in range(2):
        with guard.worker() as worker:
            workers.append(worker)
        run(backend, main)
        with pytest.raises(NotOpenError):
            resource.get()
    assert log == ["open db", "close db"] * 4
    assert len({id(worker) for worker in workers}) == 4
    assert {worker.state for worker in workers} == {CLOSED}


def test_two_holders_share_a_worker_and_the_last_one_closes(guard: Lifeguard, log: Log) -> None:
    """A worker entered twice is one worker, whoever leaves first."""
    define(guard, log, "db")
    one, other = guard.worker(), guard.worker()
    assert one.__enter__() is other.__enter__()
    one.__exit__(None, None, None)
    log.append("first holder left")
    other.__exit__(None, None, None)
    assert log == ["open db", "first holder left", "close db"]


def test_two_async_holders_share_a_worker_and_the_last_one_closes(
    backend: str, guard: Lifeguard, log: Log
) -> None:
    """The same where there is an event loop."""
    adefine(guard, log, "db")

    async def main() -> None:
        async with guard.worker() as outer:
            async with guard.worker() as inner:
                assert inner is outer
            log.append("first holder left")

    run(backend, main)
    assert log == ["open db", "first holder left", "close db"]


def test_a_second_holder_may_bring_more_resources(guard: Lifeguard, log: Log) -> None:
    """What it brings is opened at once, and closed with the rest, by the last holder."""
    define(guard, log, "declared")
    door = SyncDoor(log, "brought")
    with guard.worker():
        log.append("first")
        with guard.worker(resources=[door]):
            log.append("second")
        with guard.worker(resources=[door]):
            log.append("third")
    assert log == [
        "open declared",
        "first",
        "enter brought",
        "second",
        "third",
        "exit brought",
        "close declared",
    ]


def test_a_sync_holder_of_an_async_worker_brings_no_async_resources(
    backend: str, guard: Lifeguard, log: Log
) -> None:
    """It could not await the opening: the same TypeError as without the worker around it."""

    async def main() -> None:
        async with guard.worker():
            for brought in (AsyncDoor(log, "door"), adefine(guard, log, "declared")):
                with pytest.raises(TypeError, match=r"resource .* is async: .*`async with lifeg"):
                    with guard.worker(resources=[brought]):
                        log.append("never")
            log.append("work")

    run(backend, main)
    assert log == ["work"]


def test_threads_that_open_at_once_open_once(guard: Lifeguard, log: Log) -> None:
    """The first thread opens; the others wait until it is open, and share it."""
    entered = threading.Event()
    go_on = threading.Event()

    @guard.resource
    def slow() -> Iterator[int]:
        log.append("open")
        entered.set()
        assert go_on.wait(10)
        yield 1
        log.append("close")

    got: list[int] = []

    def hold() -> None:
        with guard.worker():
            got.append(slow.get())
            everybody.wait(10)

    everybody = threading.Barrier(8)
    release = threading.Thread(target=lambda: (entered.wait(10), go_on.set()))
    release.start()
    assert race([hold] * 8) == []
    release.join(10)
    assert got == [1] * 8
    assert log == ["open", "close"]


def test_tasks_that_open_at_once_open_once(backend: str, guard: Lifeguard, log: Log) -> None:
    """Concurrent first uses on a loop: opened once, all wait, all get it."""

    async def main() -> None:
        opening, go_on, all_in = anyio.Event(), anyio.Event(), anyio.Event()
        got: list[int] = []

        @guard.resource
        async def slow() -> AsyncIterator[int]:
            log.append("open")
            opening.set()
            await go_on.wait()
            yield 1
            log.append("close")

        async def hold() -> None:
            async with guard.worker():
                got.append(slow.get())
                if len(got) == 8:
                    all_in.set()
                await all_in.wait()

        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(hold)
            await opening.wait()
            assert guard._worker.state is OPENING
            go_on.set()
        assert got == [1] * 8

    run(backend, main)
    assert log == ["open", "close"]


def test_tasks_that_wait_for_a_failed_opening_all_learn_why(
    backend: str, guard: Lifeguard, log: Log
) -> None:
    """Each waiter gets the error, once; the next one opens anew."""

    async def main() -> None:
        go_on = anyio.Event()
        errors: list[str] = []

        @guard.resource
        async def broken() -> AsyncIterator[int]:
            log.append("try")
            await go_on.wait()
            if len(log) == 1:
                raise ConnectionRefusedError("down")
            yield 1

        async def hold() -> None:
            try:
                async with guard.worker():
                    log.append("in")
            except ConnectionRefusedError as exc:
                errors.append(str(exc))

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(hold)
            while not log:
                await anyio.lowlevel.checkpoint()
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            go_on.set()
        assert errors == ["down"] * 3
        await hold()

    run(backend, main)
    assert log == ["try", "try", "in"]


def test_an_opening_that_is_cancelled_leaves_nothing_open(
    backend: str, guard: Lifeguard, log: Log
) -> None:
    """Cancelled in the middle of opening: what was open is closed, what was opening is undone."""
    adefine(guard, log, "first")

    async def main() -> None:
        opening = anyio.Event()

        @guard.resource
        async def stuck() -> AsyncIterator[int]:
            opening.set()
            try:
                log.append("stuck")
                if len(log) < 3:
                    await anyio.sleep_forever()
                yield 1
            finally:
                log.append("undone")

        async with anyio.create_task_group() as group:

            async def hold() -> None:
                async with guard.worker():
                    log.append("never")

            group.start_soon(hold)
            await opening.wait()
            group.cancel_scope.cancel()
        assert log == ["open first", "stuck", "undone", "close first"]
        log.clear()
        log.append("again")
        async with guard.worker():
            log.append("work")

    run(backend, main)
    assert log == ["again", "open first", "stuck", "work", "undone", "close first"]


def test_a_task_that_waits_for_an_opening_is_not_cancelled_with_it(
    backend: str, guard: Lifeguard, log: Log
) -> None:
    """Whoever opens is cancelled: those who waited were not, and open it themselves."""

    async def main() -> None:
        opening, go_on = anyio.Event(), anyio.Event()

        @guard.resource
        async def db() -> AsyncIterator[int]:
            log.append("open")
            opening.set()
            await go_on.wait()
            yield 1
            log.append("close")

        async def hold(who: str) -> None:
            async with guard.worker():
                log.append(f"{who} is in")

        async with anyio.create_task_group() as group:
            opener = anyio.CancelScope()

            async def open_first() -> None:
                with opener:
                    await hold("opener")

            group.start_soon(open_first)
            await opening.wait()
            group.start_soon(hold, "waiter")
            worker = guard._worker
            while not worker.opened._wakers:
                await anyio.lowlevel.checkpoint()
            opener.cancel()
            go_on.set()

    run(backend, main)
    assert log == ["open", "open", "waiter is in", "close"]


def test_a_worker_that_failed_to_open_never_looks_open(
    backend: str, guard: Lifeguard, log: Log
) -> None:
    """Nobody can join it between its failure and its end: whoever looks sees it opening or not."""
    adefine(guard, log, "first")
    failing(guard, log)
    seen: list[str] = []

    async def main() -> None:
        async with anyio.create_task_group() as group:

            async def look() -> None:
                while True:
                    seen.append(guard._worker.state.name)
                    await anyio.lowlevel.checkpoint()

            group.start_soon(look)
            with pytest.raises(ConnectionRefusedError):
                async with guard.worker():
                    log.append("never")
            group.cancel_scope.cancel()

    run(backend, main)
    assert log == ["open first", "open broken", "close first"]
    assert "opening" in seen
    assert "open" not in seen


def test_a_closing_worker_takes_no_new_sync_holder(guard: Lifeguard, log: Log) -> None:
    """Where a wait could deadlock, a sync holder is refused with ClosedError."""

    @guard.resource
    def db() -> Iterator[int]:
        yield 1
        with pytest.raises(ClosedError) as caught, guard.worker():
            log.append("never")
        log.append(str(caught.value))

    with guard.worker():
        pass
    assert log == [f"the worker of process {os.getpid()} is closing, and takes no new units"]


def test_the_clean_up_of_a_worker_may_use_units(guard: Lifeguard, log: Log) -> None:
    """What closes a resource may run tasks of its own: they belong to the worker that closes."""

    @guard.resource
    def queue() -> Iterator[int]:
        log.append("open")
        yield 1
        with guard.unit():
            guard.callback(log.append, "unit ends")
            log.append("last message")
        log.append("close")

    with guard.worker():
        pass
    assert log == ["open", "last message", "unit ends", "close"]


def test_an_async_holder_waits_for_a_closing_worker_and_opens_the_next(
    backend: str, guard: Lifeguard, log: Log
) -> None:
    """Two lifespans that overlap do not share a worker that is on its way out."""

    async def main() -> None:
        closing, go_on = anyio.Event(), anyio.Event()

        @guard.resource
        async def db() -> AsyncIterator[int]:
            log.append("open")
            yield 1
            closing.set()
            await go_on.wait()
            log.append("close")

        async def hold(name: str) -> None:
            async with guard.worker():
                log.append(name)

        async with anyio.create_task_group() as group:
            group.start_soon(hold, "first")
            await closing.wait()
            worker = guard._worker
            group.start_soon(hold, "second")
            while not worker.closed._wakers:
                await anyio.lowlevel.checkpoint()
            go_on.set()

    run(backend, main)
    assert log == ["open", "first", "close", "open", "second", "close"]


# -- the end of the loop --------------------------------------------------------------------------


async def leave_open(guard: Lifeguard) -> None:
    await guard.worker().__aenter__()


def test_a_loop_that_ends_with_the_worker_open_closes_it_in_order(
    backend: str, guard: Lifeguard, log: Log
) -> None:
    """asyncio.run() and trio.run() cancel every task at their end: the worker closes before it."""
    adefine(guard, log, "first")
    define(guard, log, "second")
    adefine(guard, log, "third")

    async def main() -> None:
        await leave_open(guard)
        log.append("main ends")

    run(backend, main)
    assert log == [
        "open first",
        "open second",
        "open third",
        "main ends",
        "close third",
        "close second",
        "close first",
    ]
    assert guard._worker.state is CLOSED


def test_units_end_before_the_worker_when_the_loop_ends(
    backend: str, guard: Lifeguard, log: Log
) -> None:
    """Also then: first the units that were running (their tasks are cancelled), then resources."""
    adefine(guard, log, "db")

    async def main() -> None:
        await leave_open(guard)
        inside = anyio.Event()

        async def work() -> None:
            async with guard.unit():
                guard.callback(log.append, "unit ends")
                inside.set()
                await anyio.sleep_forever()

        if backend == "trio":
            trio.lowlevel.spawn_system_task(work)
            await inside.wait()
            return
        tasks.append(asyncio.ensure_future(work()))
        await inside.wait()

    tasks: list[asyncio.Task[None]] = []
    run(backend, main)
    assert log == ["open db", "unit ends", "close db"]


LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [
    asyncio.new_event_loop,
    uvloop.new_event_loop,
]


@pytest.mark.parametrize("new_loop", LOOPS, ids=["asyncio", "uvloop"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # tasks lost
def test_a_loop_closed_under_a_worker_is_reported(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    guard: Lifeguard,
    log: Log,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without its loop an async exit cannot run: sync ones do, and the log names what did not."""
    adefine(guard, log, "lost")
    define(guard, log, "sync")
    loop = new_loop()
    loop.run_until_complete(leave_open(guard))
    loop.close()
    worker = guard._worker
    worker.end()
    assert log == ["open lost", "open sync", "close sync"]
    assert worker.state is CLOSED
    (record,) = [record for record in caplog.records if record.name == "lifeguard.worker"]
    assert "ended after its event loop was gone" in record.getMessage()
    assert "Could not run: closing resource 'lost' (made at " in record.getMessage()
    assert "close the worker before the loop" in record.getMessage()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # tasks lost
def test_the_next_worker_opens_although_a_loop_was_closed_under_the_last(
    guard: Lifeguard, log: Log
) -> None:
    """A worker whose loop is gone serves nobody: it is abandoned, and a fresh one opened."""
    define(guard, log, "db")
    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave_open(guard))
    loop.close()
    with guard.worker():
        log.append("sync work")
    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave_open(guard))
    loop.close()

    async def main() -> None:
        async with guard.worker():
            log.append("async work")

    asyncio.run(main())
    assert log == [
        *["open db", "close db"],
        *["open db", "sync work", "close db"],
        *["open db", "close db"],
        *["open db", "async work", "close db"],
    ]


@pytest.mark.parametrize("new_loop", LOOPS, ids=["asyncio", "uvloop"])
def test_a_loop_that_was_only_stopped_is_run_again_to_close(
    new_loop: Callable[[], asyncio.AbstractEventLoop], guard: Lifeguard, log: Log
) -> None:
    """At the end of the process, a loop that is still there closes what was opened on it."""
    adefine(guard, log, "db")
    loop = new_loop()
    try:
        loop.run_until_complete(leave_open(guard))
        guard._worker.end()
        assert log == ["open db", "close db"]
    finally:
        loop.close()


@pytest.mark.parametrize("new_loop", LOOPS, ids=["asyncio", "uvloop"])
def test_a_loop_that_runs_in_another_thread_is_asked_to_close(
    new_loop: Callable[[], asyncio.AbstractEventLoop], guard: Lifeguard, log: Log
) -> None:
    """Clean-up that belongs to a loop runs in that loop, also when the end comes from outside."""
    loop = new_loop()
    opened = threading.Event()
    idents: list[int] = []

    @guard.resource
    async def db() -> AsyncIterator[int]:
        yield 1
        idents.append(threading.get_ident())
        log.append("close")

    async def main() -> None:
        await leave_open(guard)
        opened.set()

    def serve() -> None:
        task = loop.create_task(main())
        loop.run_forever()
        assert task.done()

    thread = threading.Thread(target=serve)
    thread.start()
    assert opened.wait(10)
    guard._worker.end()
    log.append("ended")
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()
    assert log == ["close", "ended"]
    assert idents == [thread.ident]


def test_ending_twice_closes_once(guard: Lifeguard, log: Log) -> None:
    """The end of the process finds nothing to do where a worker was closed before."""
    define(guard, log, "db")
    with guard.worker() as worker:
        pass
    worker.end()
    worker.abandon()
    assert log == ["open db", "close db"]


def test_sixteen_threads_that_end_a_worker_close_it_once(make_guard: Make) -> None:
    """Whoever moves it from open to closing owns its exits."""
    for _ in range(20):
        log: Log = []
        guard = make_guard()
        define(guard, log, "a")
        define(guard, log, "b")
        worker = guard.worker().__enter__()
        assert race([worker.end, worker.close] * 8) == []
        assert log == ["open a", "open b", "close b", "close a"]


# -- observers ------------------------------------------------------------------------------------


class Watches(lifeguard.Observer):
    def __init__(self, log: Log) -> None:
        self.log = log

    def worker_opened(self, worker: lifeguard.Worker) -> None:
        self.log.append(f"worker opened, {worker.state}")

    def worker_closed(self, worker: lifeguard.Worker, errors: Any) -> None:
        self.log.append(f"worker closed with {[str(error) for error in errors]}")

    def resource_opened(self, resource: Any, seconds: float) -> None:
        assert seconds >= 0
        self.log.append(f"observed {resource.name}")

    def callback_failed(self, lifetime: Any, error: BaseException) -> None:
        self.log.append(f"{type(lifetime).__name__}: {error!r}")


def test_observers_see_a_worker_come_and_go(make_guard: Make, log: Log) -> None:
    """They are called where it happens, in the order in which it happens."""
    guard = make_guard(observers=[Watches(log)])
    define(guard, log, "db", leave=ValueError("no"))
    with pytest.raises(CloseErrors), guard.worker():
        log.append("work")
    assert log == [
        "open db",
        "observed db",
        "worker opened, open",
        "work",
        "close db",
        "worker closed with ['no']",
    ]


def test_an_observer_that_raises_is_left_out_of_that_event(
    make_guard: Make, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """Observers never take part: one that fails is logged, and the others and the work go on."""

    class Fails(lifeguard.Observer):
        def worker_opened(self, worker: lifeguard.Worker) -> None:
            raise RuntimeError("observer is broken")

        worker_closed = resource_opened = worker_opened  # type: ignore[assignment]

    guard = make_guard(observers=[Fails(), Watches(log)])
    define(guard, log, "db")
    with guard.worker():
        log.append("work")
    assert log == [
        "open db",
        "observed db",
        "worker opened, open",
        "work",
        "close db",
        "worker closed with []",
    ]
    assert [record.name for record in caplog.records] == ["lifeguard.worker"] * 3
    assert "observer" in caplog.text
    assert "failed at worker_opened" in caplog.text
