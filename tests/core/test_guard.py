"""A guard: inert definitions, and this process's worker."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import lifeguard
from lifeguard import CloseErrors, Lifeguard, LifeguardError
from lifeguard._core.lifetime import CLOSED
from tests.core.helpers import AsyncDoor, Log, SyncDoor, adefine, define, run

Make = Callable[..., Lifeguard]


@pytest.mark.parametrize("option", ["grace", "open_timeout", "stack"])
@pytest.mark.parametrize("value", [-1, None, "10"])
def test_options_are_checked_where_they_are_given(option: str, value: Any) -> None:
    """ValueError names the option and what was given."""
    with pytest.raises(
        ValueError, match=rf"{option} must be a number of at least 0, not {value!r}"
    ):
        Lifeguard(**{option: value})


def test_options_are_keyword_only() -> None:
    """A number without a name would say nothing."""
    with pytest.raises(TypeError):
        Lifeguard(10)  # type: ignore[misc]


def test_guards_share_nothing(make_guard: Make, log: Log) -> None:
    """Each has its own key, definitions and worker."""
    one, other = make_guard(), make_guard()
    assert one.key != other.key
    define(one, log, "one")
    define(other, log, "other")
    with one.worker():
        log.append("work")
        with other.worker():
            log.append("both")
    assert log == ["open one", "work", "open other", "both", "close other", "close one"]


def test_the_module_functions_belong_to_one_default_guard() -> None:
    """lifeguard.unit and its like are methods of the same object."""
    names = ["arelease", "callback", "lifespan", "release", "resource", "task", "unit", "worker"]
    guards = {getattr(lifeguard, name).__self__ for name in [*names, "wrap"]}
    assert len(guards) == 1
    assert type(guards.pop()) is Lifeguard


def test_a_block_is_left_as_often_as_it_is_entered(
    backend: str, guard: Lifeguard, log: Log
) -> None:
    """Leaving a block that was not entered is an error, and takes no holder away from another."""
    define(guard, log, "db")
    stray = guard.worker()

    async def main() -> None:
        async with guard.worker():
            with pytest.raises(LifeguardError, match="left before it was entered"):
                stray.__exit__(None, None, None)
            with pytest.raises(LifeguardError, match="left before it was entered"):
                await stray.__aexit__(None, None, None)
            log.append("still open")

    run(backend, main)
    assert log == ["open db", "still open", "close db"]


def test_a_holder_whose_resources_fail_to_open_holds_nothing(
    backend: str, guard: Lifeguard, log: Log
) -> None:
    """Who joins an open worker and fails leaves it as it was: the last real holder closes."""
    define(guard, log, "db")

    async def main() -> None:
        async with guard.worker():
            with pytest.raises(ValueError, match="no"):
                async with guard.worker(resources=[AsyncDoor(log, "a", enter=ValueError("no"))]):
                    log.append("never")
            with (
                pytest.raises(ValueError, match="no"),
                guard.worker(resources=[SyncDoor(log, "b", enter=ValueError("no"))]),
            ):
                log.append("never")
            log.append("work")
        log.append("left")

    run(backend, main)
    assert log == ["open db", "enter a", "enter b", "work", "close db", "left"]


def test_a_holder_may_leave_from_another_thread(guard: Lifeguard, log: Log) -> None:
    """Holders are counted, not tied to threads."""
    define(guard, log, "db")
    one, other = guard.worker(), guard.worker()
    one.__enter__()
    other.__enter__()
    thread = threading.Thread(target=one.__exit__, args=(None, None, None))
    thread.start()
    thread.join(10)
    log.append("first holder left")
    other.__exit__(None, None, None)
    assert log == ["open db", "first holder left", "close db"]


def test_leaving_survives_cancellation(guard: Lifeguard, log: Log) -> None:
    """Cancelled, twice, while the last holder leaves: resources are closed, and it is cancelled."""
    inside = asyncio.Event()
    go_on = asyncio.Event()

    async def main() -> None:
        @guard.resource
        async def db() -> Any:
            yield 1
            inside.set()
            await go_on.wait()
            log.append("closed")

        async def hold() -> None:
            async with guard.worker():
                log.append("work")

        task = asyncio.ensure_future(hold())
        await inside.wait()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert log == ["work", "closed"]
    assert guard._worker.state is CLOSED


def test_leaving_survives_a_cancelled_scope(backend: str, guard: Lifeguard, log: Log) -> None:
    """The same where cancellation is by level."""
    adefine(guard, log, "db")

    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with guard.worker():
                scope.cancel()
        assert guard._worker.state is CLOSED

    run(backend, main)
    assert log == ["open db", "close db"]


def test_the_last_of_two_async_holders_gets_the_errors(
    backend: str, guard: Lifeguard, log: Log
) -> None:
    """Whoever closes hears what went wrong; whoever left before does not."""
    adefine(guard, log, "db", leave=ValueError("no"))

    async def main() -> None:
        async with guard.worker() as worker:
            async with guard.worker():
                pass
            log.append("first left")
            assert worker.holders == 1

    with pytest.raises(CloseErrors):
        run(backend, main)
    assert log == ["open db", "first left", "close db"]


def test_a_guard_that_nobody_needs_any_more_is_collected(log: Log) -> None:
    """Nothing global keeps a guard, its definitions or its closed worker alive."""
    guard = Lifeguard(handle_sigterm=False)
    define(guard, log, "db")
    with guard.worker() as worker, guard.unit():
        pass
    references = [weakref.ref(guard), weakref.ref(worker)]
    del guard, worker
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_a_guard_shows_what_state_its_worker_is_in(guard: Lifeguard) -> None:
    """repr() is for people who debug."""
    assert repr(guard) == f"<lifeguard.Lifeguard {guard.key!r}, worker not open yet>"
    with guard.worker() as worker:
        assert repr(guard) == f"<lifeguard.Lifeguard {guard.key!r}, worker open>"
        assert repr(worker) == f"<Worker the worker of process {worker.pid}, open>"
