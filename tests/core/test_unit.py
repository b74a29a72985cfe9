"""A unit: the lifetime of one piece of work."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import lifeguard
from lifeguard import ClosedError, CloseErrors, Lifeguard, NotOpenError
from lifeguard._core.lifetime import CLOSED, OPEN
from tests.core.helpers import AsyncDoor, Log, SyncDoor, adefine, define, run

Make = Callable[..., Lifeguard]


# -- the block ------------------------------------------------------------------------------------


def test_callbacks_run_when_the_block_ends(guard: Lifeguard, log: Log) -> None:
    """callback() registers on the current unit; at its end the last registered goes first."""
    with guard.unit() as unit:
        guard.callback(log.append, "first")
        unit.enter(SyncDoor(log, "a"))
        unit.callback(log.append, "last")
        assert unit.state is OPEN
        log.append("work")
    assert log == ["enter a", "work", "last", "exit a", "first"]
    assert unit.state is CLOSED


def test_an_async_block_takes_both_kinds(backend: str, guard: Lifeguard, log: Log) -> None:
    """Sync and async callbacks run in one order where there is an event loop."""

    async def later(what: str) -> None:
        await anyio.lowlevel.checkpoint()
        log.append(what)

    async def main() -> None:
        async with guard.unit() as unit:
            guard.callback(log.append, "sync 1")
            guard.callback(later, "async 2")
            await unit.aenter(AsyncDoor(log, "a"))
            guard.callback(log.append, "sync 3")
            guard.callback(functools.partial(later, "async 4"))

    run(backend, main)
    assert log == ["enter a", "async 4", "sync 3", "exit a", "async 2", "sync 1"]


def test_a_sync_unit_refuses_async_callbacks(guard: Lifeguard, log: Log) -> None:
    """The TypeError comes where the callback is registered, and the unit goes on."""

    async def flush() -> None: ...

    with guard.unit("import"):
        guard.callback(log.append, "sync")
        with pytest.raises(
            TypeError, match=r"unit 'import' is a sync one and cannot await .*flush"
        ):
            guard.callback(flush)
    assert log == ["sync"]


def test_callbacks_run_in_the_thread_of_the_unit(guard: Lifeguard) -> None:
    """Clean-up that belongs to a thread runs in it."""
    idents: list[int] = []

    def work() -> None:
        with guard.unit():
            guard.callback(lambda: idents.append(threading.get_ident()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert idents == [thread.ident]


def test_a_unit_is_current_inside_its_block_only(guard: Lifeguard) -> None:
    """After the block, and in other threads, there is none."""
    seen: list[Any] = []
    with guard.unit() as unit:
        assert guard.current.get() is unit
        thread = threading.Thread(
            target=contextvars.Context().run, args=(lambda: seen.append(guard.current.get()),)
        )
        thread.start()
        thread.join(10)
    assert seen == [None]
    assert guard.current.get() is None


def test_a_nested_unit_is_a_unit_of_its_own(guard: Lifeguard, log: Log) -> None:
    """Its end runs its own clean-up, and not that of the unit around it."""
    with guard.unit():
        guard.callback(log.append, "outer ends")
        with guard.unit():
            guard.callback(log.append, "inner ends")
            log.append("inner work")
        log.append("outer work")
        guard.callback(log.append, "outer again")
    assert log == ["inner work", "inner ends", "outer work", "outer again", "outer ends"]


def test_a_unit_that_opens_no_resources_in_order_opens_the_worker(
    guard: Lifeguard, log: Log
) -> None:
    """The first unit opens the worker; the end of the process closes it."""
    db = define(guard, log, "db")
    with guard.unit():
        log.append(f"work with {db.get()}")
    with guard.unit():
        log.append(f"more work with {db.get()}")
    guard._worker.end()
    assert log == ["open db", "work with db", "more work with db", "close db"]


def test_a_unit_is_entered_once(backend: str, guard: Lifeguard) -> None:
    """A block cannot be used again: ClosedError says to make a new one."""
    wanted = r"unit 'again' was entered before: make a new one with lifeguard\.unit\(\)"
    block = guard.unit("again")
    with block:
        pass
    with pytest.raises(ClosedError, match=wanted), block:
        pass

    async def main() -> None:
        block = guard.unit("again")
        async with block:
            with pytest.raises(ClosedError, match=wanted):
                await block.__aenter__()

    run(backend, main)


def test_a_unit_is_named_by_its_place_or_by_its_name(guard: Lifeguard) -> None:
    """Reports call it as its author does, or say where it is in the code."""
    with guard.unit("nightly import") as unit:
        assert (unit.name, str(unit)) == ("nightly import", "unit 'nightly import'")
        assert 0 <= unit.age < 10
    with guard.unit() as unit:
        assert re.fullmatch(re.escape(__file__) + r":\d+", unit.name)


# -- errors ---------------------------------------------------------------------------------------


class Failures(lifeguard.Observer):
    def __init__(self, log: Log) -> None:
        self.log = log

    def callback_failed(self, lifetime: Any, error: BaseException) -> None:
        self.log.append(f"{lifetime}: {error!r}")


def test_errors_of_callbacks_come_out_of_a_block_that_did_not_raise(
    backend: str, guard: Lifeguard, log: Log
) -> None:
    """All callbacks ran, and all errors are in one group that names the unit."""

    async def fails(error: BaseException) -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    with pytest.raises(CloseErrors, match="unit 'job' ended with errors") as caught:
        with guard.unit("job") as unit:
            unit.callback(log.append, "ran")
            unit.enter(SyncDoor(log, "a", leave=ValueError("a")))
            unit.enter(SyncDoor(log, "b", leave=OSError("b")))
    assert [repr(exc) for exc in caught.value.exceptions] == ["OSError('b')", "ValueError('a')"]

    async def main() -> None:
        async with guard.unit("job") as unit:
            unit.callback(fails, ValueError("async"))
            unit.enter(SyncDoor(log, "c", leave=OSError("sync")))

    with pytest.raises(CloseErrors, match="unit 'job' ended with errors") as caught:
        run(backend, main)
    assert [str(exc) for exc in caught.value.exceptions] == ["sync", "async"]
    assert log == ["enter a", "enter b", "exit b", "exit a", "ran", "enter c", "exit c"]


RAISED: list[BaseException] = [
    KeyError("app"),
    KeyboardInterrupt("app"),
    SystemExit(7),
    ExceptionGroup("app", [ValueError("1")]),
    BaseExceptionGroup("app", [KeyboardInterrupt("1")]),
]


@pytest.mark.parametrize("raised", RAISED, ids=lambda exc: type(exc).__name__)
@pytest.mark.parametrize("kind", ["with", "async with"])
def test_what_the_block_raised_comes_out_unchanged(
    raised: BaseException,
    kind: str,
    make_guard: Make,
    log: Log,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The very same exception, without a context of ours; what callbacks raised is reported."""
    raised.__context__ = raised.__cause__ = None
    guard = make_guard(observers=[Failures(log)])

    def fill(unit: lifeguard.Unit) -> None:
        unit.callback(log.append, "ran")
        unit.enter(SyncDoor(log, "a", leave=ValueError("callback")))

    async def main() -> None:
        async with guard.unit("job") as unit:
            fill(unit)
            raise raised

    caught: BaseException | None = None
    try:
        if kind == "with":
            with guard.unit("job") as unit:
                fill(unit)
                raise raised
        else:
            asyncio.run(main())
    except BaseException as exc:
        caught = exc
    assert caught is raised
    assert (caught.__context__, caught.__cause__) == (None, None)
    assert log == [
        "enter a",
        f"exit a with {raised!r}",
        "ran",
        "unit 'job': ValueError('callback')",
    ]
    (record,) = [record for record in caplog.records if record.name == "lifeguard.unit"]
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "a clean-up of unit 'job' failed: ValueError: callback"
    assert record.lifeguard_lifetime == "unit 'job'"  # type: ignore[attr-defined]


@pytest.mark.parametrize("fatal", [KeyboardInterrupt("stop"), SystemExit(3)], ids=repr)
def test_a_fatal_error_of_a_callback_comes_out_after_everything_ran(
    fatal: BaseException, guard: Lifeguard, log: Log
) -> None:
    """KeyboardInterrupt and SystemExit keep their meaning, and stop no other clean-up."""
    caught: BaseException | None = None
    try:
        with guard.unit() as unit:
            unit.callback(log.append, "ran")
            unit.enter(SyncDoor(log, "a", leave=fatal))
    except BaseException as exc:
        caught = exc
    assert caught is fatal
    assert log == ["enter a", "exit a", "ran"]


def test_errors_that_were_reported_carry_no_passwords(
    guard: Lifeguard, caplog: pytest.LogCaptureFixture
) -> None:
    """What a driver quotes of its connection string is logged without the secret."""

    def flush() -> None:
        raise ConnectionError("cannot reach postgresql://app:s3cret@db/app")

    with pytest.raises(KeyError), guard.unit():
        guard.callback(flush)
        raise KeyError
    message = caplog.records[0].getMessage()
    assert "ConnectionError: cannot reach postgresql://app:***@db/app" in message


# -- outside --------------------------------------------------------------------------------------


def test_outside_a_unit_there_is_nothing_to_register_on(backend: str, guard: Lifeguard) -> None:
    """callback(), release() and arelease() say where they were called, and where they belong."""
    wanted = (
        rf"was called outside a unit, at {re.escape(__file__)}:\d+: call it in a request that "
        r"lifeguard\.wrap\(\) guards, in a @lifeguard\.task, or in `with lifeguard\.unit\(\):`"
    )
    with pytest.raises(NotOpenError, match=r"callback\(\) " + wanted):
        guard.callback(print)
    with pytest.raises(NotOpenError, match=r"release\(\) " + wanted):
        guard.release()

    async def main() -> None:
        with pytest.raises(NotOpenError, match=r"arelease\(\) " + wanted):
            await guard.arelease()

    run(backend, main)


def test_code_that_outlives_its_unit_is_told_so(guard: Lifeguard, log: Log) -> None:
    """A late callback raises ClosedError, names the unit, and says what to do."""
    with guard.unit("job"):
        context = contextvars.copy_context()
    with pytest.raises(ClosedError, match=r"unit 'job' has ended, and this code outlives it: give"):
        context.run(guard.callback, log.append, "late")
    assert log == []


def test_two_guards_share_nothing(make_guard: Make, log: Log) -> None:
    """A unit of one guard is not a unit of another one."""
    one, other = make_guard(), make_guard()
    with one.unit():
        with pytest.raises(NotOpenError):
            other.callback(log.append, "other")
        one.callback(log.append, "one")
        with other.unit():
            other.callback(log.append, "other")
            log.append("work")
    assert log == ["work", "other", "one"]


# -- generators: the end may come in another context, thread or task ------------------------------


def test_a_unit_in_a_generator_ends_in_whatever_context_finishes_it(
    guard: Lifeguard, log: Log
) -> None:
    """A streamed body is advanced in one context and finished in another: clean-up still runs."""

    def body() -> Iterator[str]:
        with guard.unit():
            guard.callback(log.append, "unit ends")
            yield "chunk"

    iterator = body()
    contextvars.copy_context().run(lambda: log.append(next(iterator)))
    contextvars.copy_context().run(lambda: log.extend(iterator))
    assert log == ["chunk", "unit ends"]


def test_a_unit_in_an_async_generator_ends_in_whatever_task_finishes_it(
    backend: str, guard: Lifeguard, log: Log
) -> None:
    """The same for async generators that begin in one task and end in another."""

    async def later() -> None:
        await anyio.lowlevel.checkpoint()
        log.append("unit ends")

    async def body() -> AsyncIterator[str]:
        async with guard.unit():
            guard.callback(later)
            yield "chunk"

    async def main() -> None:
        iterator = body()

        async def first() -> None:
            log.append(await anext(iterator))

        async def rest() -> None:
            async for chunk in iterator:
                log.append(chunk)

        for step in (first, rest):
            async with anyio.create_task_group() as group:
                group.start_soon(step)

    run(backend, main)
    assert log == ["chunk", "unit ends"]


def test_a_unit_whose_coroutine_is_thrown_away_still_ends(
    make_guard: Make, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """Sync clean-up runs here and now, async clean-up on the loop that still runs."""
    guard = make_guard(observers=[Failures(log)])
    done = asyncio.Event()

    async def later() -> None:
        await asyncio.sleep(0)
        log.append("async")
        done.set()

    async def work() -> None:
        async with guard.unit():
            guard.callback(log.append, "sync 1")
            guard.callback(later)
            guard.callback(log.append, "sync 3")
            await Suspend()

    async def main() -> None:
        async with guard.worker():
            coroutine = work()
            coroutine.send(None)
            coroutine.close()
            log.append("thrown away")
            async with asyncio.timeout(5):
                await done.wait()
                while log[-1] != "sync 1":
                    await asyncio.sleep(0)

    asyncio.run(main())
    assert log == ["sync 3", "thrown away", "async", "sync 1"]
    assert caplog.records == []


class Suspend:
    """Gives control back to whoever drives the coroutine."""

    def __await__(self) -> Iterator[None]:
        yield


# -- cancelled twice ------------------------------------------------------------------------------


def test_clean_up_survives_two_cancellations_on_asyncio(guard: Lifeguard, log: Log) -> None:
    """Cancelled, and again in the middle of clean-up: it completes, and the task is cancelled."""

    async def main() -> None:
        inside, cleaning, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def flush() -> None:
            log.append("flush begins")
            cleaning.set()
            await go_on.wait()
            log.append("flush ends")

        async def work() -> None:
            async with guard.unit():
                guard.callback(log.append, "first")
                guard.callback(flush)
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.ensure_future(work())
        await inside.wait()
        task.cancel("once")
        await cleaning.wait()
        for _ in range(3):
            task.cancel("again")
            await asyncio.sleep(0)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(main())
    assert log == ["flush begins", "flush ends", "first"]


def test_clean_up_survives_a_cancellation_by_level(
    backend: str, guard: Lifeguard, log: Log
) -> None:
    """In a cancelled anyio scope everything awaited is cancelled, except clean-up."""

    async def main() -> None:
        async def flush() -> None:
            log.append("flush begins")
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            log.append("flush ends")

        with anyio.CancelScope() as scope:
            async with guard.unit() as unit:
                unit.callback(log.append, "first")
                unit.callback(flush)
                await unit.aenter(AsyncDoor(log, "a"))
                scope.cancel()
                await anyio.sleep_forever()
            log.append("never")
        assert scope.cancelled_caught

    run(backend, main)
    assert log[0] == "enter a"
    assert log[1].startswith("exit a with ")
    assert log[2:] == ["flush begins", "flush ends", "first"]


def test_a_hung_callback_costs_the_grace_and_is_named(
    backend: str, make_guard: Make, log: Log
) -> None:
    """The unit ends within the grace although one callback never would."""
    guard = make_guard(grace=0.5)

    async def hangs() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cancelled")

    async def main() -> None:
        async with guard.unit():
            guard.callback(log.append, "first")
            guard.callback(hangs)

    with pytest.raises(CloseErrors) as caught:
        run(backend, main)
    assert re.search(
        r"callback .*hangs.* did not end within 0\.5 seconds", str(caught.value.exceptions[0])
    )
    assert log == ["cancelled", "first"]


# -- units of several tasks -----------------------------------------------------------------------


def test_units_of_concurrent_tasks_do_not_mix(backend: str, guard: Lifeguard) -> None:
    """Each task has its own current unit, however they take turns."""
    ended: dict[int, list[int]] = {}

    async def work(number: int) -> None:
        ended[number] = []
        async with guard.unit():
            for step in range(3):
                guard.callback(ended[number].append, step)
                await anyio.lowlevel.checkpoint()

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(work, number)

    adefine(guard, [], "db")
    run(backend, main)
    assert ended == {number: [2, 1, 0] for number in range(10)}
