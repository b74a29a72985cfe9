"""A lifetime: an exit stack that is closed exactly once."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
import time
import unittest.mock
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from lifeguard import ClosedError, CloseErrors, WrongProcessError
from lifeguard._core.clock import now
from lifeguard._core.lifetime import (
    CLOSED,
    CLOSING,
    DISCARDED,
    OPEN,
    Call,
    Lifetime,
    describe,
    is_async,
)
from tests.core.helpers import AsyncDoor, Log, SyncDoor, race, run, switching_often

# -- one scenario, both drivers -------------------------------------------------------------------

Close = Callable[[Lifetime], None]


def close_here(lifetime: Lifetime) -> None:
    lifetime.close()


def close_on_a_loop(lifetime: Lifetime) -> None:
    run("asyncio", lifetime.aclose)


@pytest.fixture(params=[close_here, close_on_a_loop], ids=["close", "aclose"])
def close(request: pytest.FixtureRequest) -> Close:
    """The two ways to end a lifetime: the same scenarios hold for both."""
    return request.param  # type: ignore[no-any-return]


def test_exits_run_last_registered_first(close: Close, log: Log) -> None:
    """Callbacks and context managers end in the reverse order of their registration."""
    lifetime = Lifetime()
    lifetime.callback(log.append, "callback 1")
    assert lifetime.enter(SyncDoor(log, "a")) == "a"
    lifetime.callback(log.append, "callback 2")
    lifetime.enter(SyncDoor(log, "b"))
    close(lifetime)
    assert log == ["enter a", "enter b", "exit b", "callback 2", "exit a", "callback 1"]
    assert lifetime.state is CLOSED


def test_a_callback_gets_its_arguments(close: Close, log: Log) -> None:
    """callback() passes positional and keyword arguments on, whatever their names are."""
    lifetime = Lifetime()

    def note(*args: object, **kwargs: object) -> None:
        log.append(f"{args} {kwargs}")

    lifetime.callback(note, 1, 2, func=3, self=4)
    close(lifetime)
    assert log == ["(1, 2) {'func': 3, 'self': 4}"]


def test_the_second_close_does_nothing(close: Close, log: Log) -> None:
    """Closing again runs nothing and raises nothing, also after a close with errors."""
    lifetime = Lifetime()
    lifetime.enter(SyncDoor(log, "a", leave=ValueError("once")))
    with pytest.raises(CloseErrors):
        close(lifetime)
    close(lifetime)
    lifetime.close()
    assert log == ["enter a", "exit a"]


def test_closing_from_inside_an_exit_does_nothing(close: Close, log: Log) -> None:
    """An exit that closes its own lifetime neither hangs nor runs anything twice."""
    lifetime = Lifetime()
    lifetime.callback(log.append, "first")
    lifetime.callback(lifetime.close)
    lifetime.callback(log.append, "last")
    close(lifetime)
    assert log == ["last", "first"]


class Teetering(Lifetime):
    """Lets other threads run right after its state was read: where a race would be lost."""

    @property
    def state(self) -> Any:  # type: ignore[override]
        state = self.__dict__["state"]
        time.sleep(0)
        return state

    @state.setter
    def state(self, state: Any) -> None:
        self.__dict__["state"] = state


def test_sixteen_racing_closers_run_every_exit_exactly_once() -> None:
    """Of many threads that close at once, one runs all exits, in order; the others run none."""
    with switching_often():
        for _ in range(60):
            log: list[tuple[int, int]] = []
            lifetime = Teetering()
            for number in range(8):
                lifetime.callback(lambda n: log.append((n, threading.get_ident())), number)
            assert race([lifetime.close] * 16) == []
            assert [number for number, _ in log] == [7, 6, 5, 4, 3, 2, 1, 0]
            assert len({ident for _, ident in log}) == 1


def test_two_closers_that_look_at_the_same_time_cannot_both_win() -> None:
    """Looking and moving is one step: while one closer is between the two, the other waits."""
    first_has_looked, second_has_looked = threading.Event(), threading.Event()
    first: list[int] = []

    class Staged(Teetering):
        @property
        def state(self) -> Any:  # type: ignore[override]
            state = self.__dict__["state"]
            if threading.get_ident() in first:
                first_has_looked.set()
                second_has_looked.wait(0.2)  # in vain: the other one must not get here
            elif first_has_looked.is_set():
                second_has_looked.set()
            return state

        @state.setter
        def state(self, state: Any) -> None:
            self.__dict__["state"] = state

    lifetime = Staged()
    won: list[bool] = []

    def go_first() -> None:
        first.append(threading.get_ident())
        won.append(lifetime._claim())

    def go_second() -> None:
        assert first_has_looked.wait(10)
        won.append(lifetime._claim())

    assert race([go_first, go_second]) == []
    assert sorted(won) == [False, True]


def test_racing_registrations_run_once_or_are_refused() -> None:
    """A callback that races with the close runs once or raises ClosedError."""
    with switching_often():
        for _ in range(60):
            ran: list[int] = []
            refused: list[int] = []
            lifetime = Teetering()

            def register(number: int, lifetime: Lifetime, ran: list[int], no: list[int]) -> None:
                for offset in range(5):
                    try:
                        lifetime.callback(ran.append, number + offset)
                    except ClosedError:
                        no.append(number + offset)

            racers = [
                functools.partial(register, 10 * thread, lifetime, ran, refused)
                for thread in range(8)
            ]
            assert race([*racers, lifetime.close, lifetime.close]) == []
            expected = [10 * thread + offset for thread in range(8) for offset in range(5)]
            assert sorted(ran + refused) == expected
            assert list(lifetime) == []


# -- errors ---------------------------------------------------------------------------------------


def test_every_exit_runs_and_the_errors_come_out_as_one_group(close: Close, log: Log) -> None:
    """Errors stop nothing; they come out together, in the order in which they happened."""
    lifetime = Lifetime()
    first, last = ValueError("first registered"), OSError("last registered")
    lifetime.enter(SyncDoor(log, "a", leave=first))
    lifetime.enter(SyncDoor(log, "b"))
    lifetime.enter(SyncDoor(log, "c", leave=last))
    with pytest.raises(CloseErrors, match="the lifetime ended with errors") as caught:
        close(lifetime)
    assert caught.value.exceptions == (last, first)
    assert log == ["enter a", "enter b", "enter c", "exit c", "exit b", "exit a"]


FATAL: list[BaseException] = [
    KeyboardInterrupt("ctrl-c"),
    SystemExit(3),
    asyncio.CancelledError("cancelled"),
    GeneratorExit("dropped"),
]


@pytest.mark.parametrize("fatal", FATAL, ids=lambda exc: type(exc).__name__)
def test_every_exit_runs_even_if_one_raises_what_is_not_an_exception(
    fatal: BaseException, close: Close, log: Log
) -> None:
    """KeyboardInterrupt and its kin are raised as themselves, after everything ran."""
    fatal.__context__ = None
    lifetime = Lifetime()
    error = ValueError("too")
    lifetime.enter(SyncDoor(log, "a"))
    lifetime.enter(SyncDoor(log, "b", leave=fatal))
    lifetime.enter(SyncDoor(log, "c", leave=error))
    with pytest.raises(type(fatal)) as caught:
        try:
            lifetime.close()
        finally:
            assert log == ["enter a", "enter b", "enter c", "exit c", "exit b", "exit a"]
    assert caught.value is fatal
    assert isinstance(fatal.__context__, CloseErrors)
    assert fatal.__context__.exceptions == (error,)


def test_exits_are_told_what_the_lifetime_ended_with(log: Log) -> None:
    """A context manager sees the exception as in a `with`, but cannot hide it from others."""

    class Swallows(SyncDoor):
        def __exit__(self, *args: Any) -> bool:  # type: ignore[override]
            super().__exit__(*args)
            return True

    lifetime = Lifetime()
    lifetime.enter(SyncDoor(log, "a"))
    lifetime.enter(Swallows(log, "b"))
    lifetime.close(ValueError("why"))
    assert log == [
        "enter a",
        "enter b",
        "exit b with ValueError('why')",
        "exit a with ValueError('why')",
    ]


# -- entering -------------------------------------------------------------------------------------


def test_what_failed_to_enter_is_never_left(close: Close, log: Log) -> None:
    """Enter first, register after: a failed __enter__ gets no __exit__."""
    lifetime = Lifetime()
    lifetime.enter(SyncDoor(log, "a"))
    with pytest.raises(ValueError, match="no entry"):
        lifetime.enter(SyncDoor(log, "b", enter=ValueError("no entry")))
    close(lifetime)
    assert log == ["enter a", "enter b", "exit a"]


def test_what_failed_to_enter_asynchronously_is_never_left(backend: str, log: Log) -> None:
    """The same for __aenter__ and __aexit__."""

    async def main() -> None:
        lifetime = Lifetime(awaits=True)
        await lifetime.aenter(AsyncDoor(log, "a"))
        with pytest.raises(ValueError, match="no entry"):
            await lifetime.aenter(AsyncDoor(log, "b", enter=ValueError("no entry")))
        await lifetime.aclose()

    run(backend, main)
    assert log == ["enter a", "enter b", "exit a"]


def test_what_was_entered_in_a_lifetime_that_ended_meanwhile_is_left(log: Log) -> None:
    """If the lifetime closes during __enter__, the manager is left again and ClosedError raised."""
    lifetime = Lifetime()

    class ClosesIt(SyncDoor):
        def __enter__(self) -> Any:
            value = super().__enter__()
            lifetime.close()
            return value

    with pytest.raises(ClosedError):
        lifetime.enter(ClosesIt(log, "a"))
    assert [entry.partition(" with ")[0] for entry in log] == ["enter a", "exit a"]
    assert list(lifetime) == []


def test_what_was_entered_asynchronously_in_a_lifetime_that_ended_meanwhile_is_left(
    backend: str, log: Log
) -> None:
    """The same for aenter()."""

    async def main() -> None:
        lifetime = Lifetime(awaits=True)

        class ClosesIt(AsyncDoor):
            async def __aenter__(self) -> Any:
                value = await super().__aenter__()
                await lifetime.aclose()
                return value

        with pytest.raises(ClosedError):
            await lifetime.aenter(ClosesIt(log, "a"))

    run(backend, main)
    assert [entry.partition(" with ")[0] for entry in log] == ["enter a", "exit a"]


def test_entering_an_ended_lifetime_enters_nothing(log: Log) -> None:
    """enter() looks first whether anything would ever leave again."""
    lifetime = Lifetime()
    lifetime.close()
    with pytest.raises(ClosedError):
        lifetime.enter(SyncDoor(log, "a"))
    assert log == []


def test_only_context_managers_can_be_entered() -> None:
    """The TypeError shows what was passed, and knows the async kind."""
    lifetime = Lifetime(awaits=True)
    with pytest.raises(TypeError, match=r"enter\(\) takes a context manager, not 3$"):
        lifetime.enter(3)
    with pytest.raises(TypeError, match=r"<AsyncDoor a> \(it is an async one: use aenter\(\)\)"):
        lifetime.enter(AsyncDoor([], "a"))
    with pytest.raises(
        TypeError, match=r"aenter\(\) takes an async context manager, not <SyncDoor"
    ):
        lifetime.aenter(SyncDoor([], "a")).send(None)
    with pytest.raises(TypeError, match=r"callback\(\) takes a callable, not None"):
        lifetime.callback(None)  # type: ignore[arg-type]


# -- sync and async on one stack ------------------------------------------------------------------


def test_sync_and_async_exits_share_one_stack(backend: str, log: Log) -> None:
    """An async lifetime takes both kinds and runs them in one order, awaiting the async ones."""

    async def later(what: str) -> None:
        await anyio.lowlevel.checkpoint()
        log.append(what)

    async def main() -> None:
        lifetime = Lifetime(awaits=True)
        lifetime.callback(log.append, "sync 1")
        await lifetime.aenter(AsyncDoor(log, "a"))
        lifetime.callback(later, "async 2")
        lifetime.enter(SyncDoor(log, "b", leave=ValueError("b")))
        lifetime.callback(log.append, "sync 3")
        lifetime.callback(functools.partial(later, "async 4"))
        with pytest.raises(CloseErrors) as caught:
            await lifetime.aclose()
        assert [str(exc) for exc in caught.value.exceptions] == ["b"]

    run(backend, main)
    assert log == [
        "enter a",
        "enter b",
        "async 4",
        "sync 3",
        "exit b",
        "async 2",
        "exit a",
        "sync 1",
    ]


def test_a_sync_lifetime_refuses_async_exits_at_once(log: Log) -> None:
    """The kind is checked at registration: a TypeError names the callback, and says what to do."""
    lifetime = Lifetime()
    lifetime.callback(log.append, "sync")

    async def flush() -> None:
        log.append("never")

    wanted = r"cannot await callback .*flush.*use `async with`"
    with pytest.raises(TypeError, match=wanted):
        lifetime.callback(flush)
    with pytest.raises(TypeError, match=wanted):
        lifetime.callback(functools.partial(flush))
    with pytest.raises(TypeError, match=r"cannot leave <AsyncDoor a>.*use `async with`"):
        lifetime.aenter(AsyncDoor(log, "a")).send(None)
    lifetime.close()
    assert log == ["sync"]


def test_an_awaitable_found_too_late_does_not_stop_the_other_exits(log: Log) -> None:
    """What looked sync and gave an awaitable in a sync close is an error; the rest still runs."""

    async def flush() -> None:
        log.append("never")

    lifetime = Lifetime()
    lifetime.callback(log.append, "first")
    lifetime.callback(lambda: flush())
    lifetime.callback(log.append, "last")
    with pytest.raises(CloseErrors) as caught:
        lifetime.close()
    assert [type(exc) for exc in caught.value.exceptions] == [TypeError]
    assert "gave an awaitable, and nothing here can await it" in str(caught.value.exceptions[0])
    assert log == ["last", "first"]


def test_an_awaitable_that_could_not_be_foreseen_is_awaited_where_there_is_a_loop(
    backend: str, log: Log
) -> None:
    """An async close awaits whatever an exit returns, if that can be awaited."""

    async def flush() -> None:
        await anyio.lowlevel.checkpoint()
        log.append("awaited")

    async def main() -> None:
        lifetime = Lifetime(awaits=True)
        lifetime.callback(log.append, "first")
        lifetime.callback(lambda: flush())
        await lifetime.aclose()

    run(backend, main)
    assert log == ["awaited", "first"]


def test_the_kind_of_a_callable_is_seen_through_what_wraps_it() -> None:
    """Partials, bound methods and objects with an async __call__ are async; the rest is not."""

    async def function() -> None: ...

    class Both:
        async def method(self) -> None: ...
        def sync(self) -> None: ...
        def other(self) -> None: ...
        @staticmethod
        async def static() -> None: ...

    class Callable_:
        async def __call__(self) -> None: ...

    marked = Both().sync.__func__  # type: ignore[attr-defined]
    marked._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]

    asynchronous: list[Any] = [
        function,
        marked,
        functools.partial(function),
        Both().method,
        Both.static,
        Callable_(),
    ]
    asynchronous.append(functools.partial(functools.partial(Both().method)))
    assert [is_async(func) for func in asynchronous] == [True] * 7
    synchronous: list[Any] = [Both.other, print, Both, functools.partial(print)]
    synchronous += [unittest.mock.Mock(), unittest.mock.MagicMock()]  # these have every attribute
    assert [is_async(func) for func in synchronous] == [False] * 6


# -- late -----------------------------------------------------------------------------------------


def test_what_is_registered_while_closing_runs_next(close: Close, log: Log) -> None:
    """An exit may register another one: it runs right after, before the older ones."""
    lifetime = Lifetime()
    lifetime.callback(log.append, "oldest")

    def registers() -> None:
        log.append("registers")
        lifetime.callback(log.append, "registered while closing")

    lifetime.callback(registers)
    close(lifetime)
    assert log == ["registers", "registered while closing", "oldest"]


def test_what_the_last_exit_registers_still_runs(close: Close, log: Log) -> None:
    """Also when nothing else is left on the stack."""
    lifetime = Lifetime()
    lifetime.callback(lambda: lifetime.callback(log.append, "late"))
    close(lifetime)
    assert log == ["late"]
    assert lifetime.state is CLOSED


def test_what_comes_in_between_the_last_look_and_the_end_still_runs(log: Log) -> None:
    """An exit appended in the moment the lifetime ends is not lost: the closer looks again."""
    stage: list[Call] = [Call(log.append, ("in between",), awaits=False)]

    class Staged(Teetering):
        @property
        def state(self) -> Any:  # type: ignore[override]
            return self.__dict__["state"]

        @state.setter
        def state(self, state: Any) -> None:
            if state is CLOSED and stage:  # another thread: before the state, after the last look
                self.append(stage.pop())
            self.__dict__["state"] = state

    lifetime = Staged()
    lifetime.close()
    assert log == ["in between"]
    assert lifetime.state is CLOSED


def test_what_was_taken_back_is_refused_although_the_closer_looks_again(log: Log) -> None:
    """A late callback that just missed the closer raises ClosedError: it is not lost in silence."""

    class Staged(Lifetime):
        def remove(self, exit_: Any) -> None:
            super().remove(exit_)
            self.state = CLOSING  # another thread: it saw the exit, and now finds it gone

    lifetime = Staged()
    lifetime.close()
    with pytest.raises(ClosedError, match="the staged is closing, and does not take callback"):
        lifetime.callback(log.append, "late")
    assert log == []


def test_what_comes_after_the_end_is_refused(close: Close, log: Log) -> None:
    """A callback after the close raises ClosedError that says what to do, and is not kept."""
    lifetime = Lifetime()
    close(lifetime)
    with pytest.raises(ClosedError, match=r"the lifetime has ended.*`with lifeguard\.unit\(\):`"):
        lifetime.callback(log.append, "late")
    assert list(lifetime) == []
    lifetime.close()
    assert log == []


# -- bounded and uncancelled ----------------------------------------------------------------------


def test_a_hung_exit_costs_its_budget_and_is_named(backend: str, log: Log) -> None:
    """An exit that hangs is cancelled when the grace is over; the others still run."""

    async def hangs() -> None:
        log.append("hangs")
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cancelled")

    async def quick() -> None:
        await anyio.lowlevel.checkpoint()
        log.append("quick")

    async def main() -> float:
        lifetime = Lifetime(awaits=True)
        lifetime.callback(log.append, "sync")
        lifetime.callback(quick)
        lifetime.callback(hangs)
        began = now()
        with pytest.raises(CloseErrors) as caught:
            await lifetime.aclose(grace=0.2)
        (error,) = caught.value.exceptions
        assert isinstance(error, TimeoutError)
        assert "callback" in str(error)
        assert "hangs" in str(error)
        assert "did not end within 0.2 seconds and was cancelled" in str(error)
        return now() - began

    assert 0.19 <= run(backend, main) < 2
    assert log == ["hangs", "cancelled", "quick", "sync"]


def test_two_hung_exits_share_the_budget(log: Log) -> None:
    """The second one that hangs gets a tenth of the grace, not all of it again."""

    async def main() -> float:
        lifetime = Lifetime(awaits=True)
        for _ in range(3):
            lifetime.callback(anyio.sleep_forever)
        began = now()
        with pytest.raises(CloseErrors) as caught:
            await lifetime.aclose(grace=0.5)
        assert len(caught.value.exceptions) == 3
        return now() - began

    assert 0.55 <= run("asyncio", main) < 1.2


def test_an_exit_is_not_cut_short_by_a_level_cancellation(log: Log) -> None:
    """Exits complete in a cancelled anyio scope, where everything awaited is cancelled."""
    for backend in ("asyncio", "trio"):

        async def main() -> None:
            lifetime = Lifetime(awaits=True)
            await lifetime.aenter(AsyncDoor(log, "a"))
            with anyio.CancelScope() as scope:
                scope.cancel()
                await lifetime.aclose()

        run(backend, main)
    assert log == ["enter a", "exit a"] * 2


# -- belonging to one process ---------------------------------------------------------------------


def test_a_discarded_lifetime_runs_nothing_and_keeps_what_it_held(log: Log) -> None:
    """discard() forgets without closing, and holds a reference so that no destructor runs."""

    class Precious:
        def __del__(self) -> None:
            log.append("destroyed")

        def close(self) -> None:
            log.append("closed")

    lifetime = Lifetime()
    lifetime.callback(Precious().close)
    lifetime.discard()
    gc.collect()
    lifetime.close()
    assert log == []
    assert lifetime.state is DISCARDED
    with pytest.raises(WrongProcessError, match="belongs to the process that this one was forked"):
        lifetime.callback(log.append, "late")


# -- small things ---------------------------------------------------------------------------------


def test_a_callback_is_described_without_its_arguments() -> None:
    """Names in messages are what a person would look for; arguments may be secrets."""

    def flush(secret: str) -> None: ...

    text = describe(functools.partial(flush, "s3cret"))
    assert text.startswith("tests.core.test_lifetime.") or ".flush" in text
    assert "flush" in text
    assert __file__ in text
    assert "s3cret" not in text
    assert "s3cret" not in str(Call(flush, ("s3cret",)))


def test_lifetimes_are_equal_only_to_themselves() -> None:
    """They are lists for speed, but two empty ones are not the same, and each can be in a set."""
    one, other = Lifetime(), Lifetime()
    assert one != other
    assert len({one, other}) == 2
    assert repr(one) == "<Lifetime the lifetime, open>"
    assert (one.state, one.awaits) == (OPEN, False)


def test_only_the_winner_of_the_claim_is_closing() -> None:
    """While one closes, everybody else finds nothing to do, and the state says so."""
    lifetime = Lifetime()
    states: list[Any] = []
    lifetime.callback(lambda: states.append(lifetime.state))
    lifetime.callback(lambda: states.append(lifetime._claim()))
    lifetime.close()
    assert states == [False, CLOSING]


def test_cancelling_a_close_does_not_lose_the_other_exits_nor_the_cancellation(log: Log) -> None:
    """By edge: the exit that is hit ends, the rest run, and the cancellation comes out."""

    async def main() -> None:
        lifetime = Lifetime(awaits=True)
        inside = asyncio.Event()

        async def waits() -> None:
            inside.set()
            try:
                await asyncio.Event().wait()
            finally:
                log.append("hit")

        await lifetime.aenter(AsyncDoor(log, "a"))
        lifetime.callback(waits)
        task = asyncio.ensure_future(lifetime.aclose())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert log == ["enter a", "hit", "exit a"]
