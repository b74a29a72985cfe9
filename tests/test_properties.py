"""A state machine against a plain list: whatever happens in whatever order, exits run once.

The model of a lifetime is the list of what was registered and has not run. The rules do what a
program does to workers and units (register, raise, nest, close from several threads at once, on
a loop, fork); the invariants are what is promised in every order of these.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lifeguard import ClosedError, CloseErrors, Lifeguard
from lifeguard._core.lifetime import CLOSED, OPEN, Lifetime
from lifeguard._core.unit import Unit
from tests.core.helpers import AsyncDoor, SyncDoor, in_fork, race

RAISES = [None, None, ValueError, KeyError]


class Modelled:
    """A real lifetime, and the names of its exits that have not run, in the order they came."""

    def __init__(self, lifetime: Lifetime, name: str) -> None:
        self.lifetime = lifetime
        self.name = name
        self.exits: list[str] = []
        self.raises: set[str] = set()


class Machine(RuleBasedStateMachine):
    """One worker at a time, any number of units on it. The log is the witness."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.guard = Lifeguard(grace=5, handle_sigterm=False)
        self.log: list[str] = []
        self.seen = 0  # how much of the log was compared
        self.numbers = itertools.count(1)
        self.worker: Modelled | None = None
        self.block: Any = None
        self.units: list[Modelled] = []
        self.ended: list[Lifetime] = []

    def run(self, main: Callable[..., Any], *args: Any) -> Any:
        return self.loop.run_until_complete(main(*args))

    def teardown(self) -> None:
        for unit in self.units[:]:
            self.end(unit, "loop")
        if self.worker is not None:
            self.close_worker()
        self.loop.close()

    # -- what a program does -------------------------------------------------------------------

    @precondition(lambda self: self.worker is None)
    @rule()
    def open_worker(self) -> None:
        self.block = self.guard.worker()
        self.worker = Modelled(self.run(self.block.__aenter__), "worker")

    @precondition(lambda self: self.worker is not None and len(self.units) < 4)
    @rule()
    def begin_unit(self) -> None:
        unit = Unit()
        unit.awaits = True
        unit.source = f"unit {next(self.numbers)}"
        unit.worker = self.guard._worker
        unit.started = 0.0
        unit.state = OPEN
        self.units.append(Modelled(unit, unit.name))

    def pick(self, number: int) -> Modelled:
        assert self.worker is not None
        return [self.worker, *self.units][number % (len(self.units) + 1)]

    def register(self, where: Modelled, kind: str, raises: type[Exception] | None) -> str:
        name = f"{kind} {next(self.numbers)} of {where.name}"
        error = None if raises is None else raises(name)
        lifetime = where.lifetime
        if kind == "callback":
            lifetime.callback(self.exit, name, error)
        elif kind == "async callback":
            lifetime.callback(self.aexit, name, error)
        elif kind == "door":
            lifetime.enter(Quiet(self.log, name, leave=error))
        else:
            self.run(lifetime.aenter, AsyncQuiet(self.log, name, leave=error))
        where.exits.append(f"exit {name}")
        if error is not None:
            where.raises.add(f"exit {name}")
        return name

    def exit(self, name: str, error: Exception | None) -> None:
        self.log.append(f"exit {name}")
        if error is not None:
            raise error

    async def aexit(self, name: str, error: Exception | None) -> None:
        await asyncio.sleep(0)
        self.exit(name, error)

    @precondition(lambda self: self.worker is not None)
    @rule(
        number=st.integers(0, 9),
        kind=st.sampled_from(["callback", "async callback", "door", "async door"]),
        raises=st.sampled_from(RAISES),
    )
    def push(self, number: int, kind: str, raises: type[Exception] | None) -> None:
        self.register(self.pick(number), kind, raises)

    @precondition(lambda self: self.worker is not None)
    @rule(number=st.integers(0, 9), asynchronous=st.booleans())
    def fail_to_enter(self, number: int, asynchronous: bool) -> None:
        lifetime = self.pick(number).lifetime
        with pytest.raises(OSError, match="no entry"):
            if asynchronous:
                self.run(lifetime.aenter, AsyncQuiet(self.log, "x", enter=OSError("no entry")))
            else:
                lifetime.enter(Quiet(self.log, "x", enter=OSError("no entry")))

    @precondition(lambda self: self.worker is not None)
    @rule(number=st.integers(0, 9))
    def register_while_closing(self, number: int) -> None:
        """An exit that registers another one, which then runs right after it."""
        where = self.pick(number)
        name = f"callback {next(self.numbers)} of {where.name}"

        def late() -> None:
            self.log.append(f"exit {name}")
            where.lifetime.callback(self.exit, f"{name}, late", None)

        where.lifetime.callback(late)
        where.exits += [f"exit {name}, late", f"exit {name}"]

    @precondition(lambda self: self.units)
    @rule(number=st.integers(0, 9), how=st.sampled_from(["loop", "twice", "threads"]))
    def end_unit(self, number: int, how: str) -> None:
        self.end(self.units[number % len(self.units)], how)

    def end(self, unit: Modelled, how: str) -> None:
        errors: list[BaseException] = []

        async def close() -> None:
            try:
                await unit.lifetime.aclose()
            except BaseException as exc:
                errors.append(exc)

        async def race_on_a_loop() -> None:
            await asyncio.gather(close(), close())

        if how == "loop":
            self.run(close)
        elif how == "twice":
            self.run(race_on_a_loop)
        else:
            errors += race([lambda: asyncio.run(unit.lifetime.aclose())] * 4)
        self.units.remove(unit)
        self.compare(unit, errors)

    @precondition(lambda self: self.worker is not None)
    @rule(number=st.integers(0, 9))
    def fork_a_child_that_closes(self, number: int) -> None:
        """It tries everything; nothing runs in it, and its own worker works."""
        where = self.pick(number)
        own: list[str] = []

        def child() -> list[Any]:
            asyncio._set_running_loop(None)
            where.lifetime.close()
            for unit in self.units:
                unit.lifetime.close()
            self.guard._worker.close()
            self.guard._worker.end()
            with self.guard.unit():
                self.guard.callback(own.append, "own")
            return [len(self.log), own]

        assert in_fork(child) == [len(self.log), ["own"]]

    @precondition(lambda self: self.worker is not None)
    @rule(idle=st.booleans())
    def end_worker(self, idle: bool) -> None:
        """Its units end before it: by themselves, or while it already waits for them."""
        if idle:
            for unit in self.units[:]:
                self.end(unit, "loop")
        self.close_worker()

    def close_worker(self) -> None:
        worker, self.worker = self.worker, None
        assert worker is not None
        units, self.units = self.units, []
        errors: list[BaseException] = []

        async def close() -> None:
            closing = asyncio.ensure_future(self.block.__aexit__(None, None, None))
            while worker.lifetime.state is OPEN:
                await asyncio.sleep(0)
            for unit in units:
                try:
                    await unit.lifetime.aclose()
                except CloseErrors:
                    assert unit.raises
            try:
                await closing
            except BaseException as exc:
                errors.append(exc)

        self.run(close)
        for unit in units:  # these, first begun first ended, and only then the worker
            self.compare_log(unit)
        self.compare(worker, errors)

    # -- what is promised ----------------------------------------------------------------------

    def compare_log(self, where: Modelled) -> None:
        wanted = where.exits[::-1]
        ran = self.log[self.seen : self.seen + len(wanted)]
        assert ran == wanted, f"{where.name}: last in, first out, each exactly once"
        self.seen += len(wanted)
        assert where.lifetime.state is CLOSED
        self.ended.append(where.lifetime)

    def compare(self, where: Modelled, errors: list[BaseException]) -> None:
        self.compare_log(where)
        assert len(self.log) == self.seen, "nothing else ran"
        assert len(errors) == (1 if where.raises else 0)
        for group in errors:
            assert isinstance(group, CloseErrors)
            named = [f"exit {error.args[0]}" for error in group.exceptions]
            assert named == [name for name in where.exits[::-1] if name in where.raises]

    @invariant()
    def nothing_ran_that_was_not_asked_for(self) -> None:
        assert len(self.log) == self.seen

    @invariant()
    def each_exit_ran_at_most_once(self) -> None:
        assert len(set(self.log)) == len(self.log)

    @invariant()
    def what_is_open_holds_what_the_model_says(self) -> None:
        for unit in self.units:
            assert unit.lifetime.state is OPEN
            assert bool(unit.lifetime) is bool(unit.exits)
        if self.worker is not None:
            assert self.worker.lifetime.state is OPEN

    @invariant()
    def what_has_ended_takes_nothing(self) -> None:
        for lifetime in self.ended[-3:]:
            with pytest.raises(ClosedError):
                lifetime.callback(self.log.append, "never")
            assert list(lifetime) == []


class Quiet(SyncDoor):
    """Logs its exit only: the model is about exits."""

    def _go_in(self) -> Any:
        if self.enter_raises is not None:
            raise self.enter_raises

    def _go_out(self, exc: BaseException | None) -> None:
        super()._go_out(None)


class AsyncQuiet(AsyncDoor):
    def _go_in(self) -> Any:
        if self.enter_raises is not None:
            raise self.enter_raises

    def _go_out(self, exc: BaseException | None) -> None:
        super()._go_out(None)


@pytest.mark.timeout(300)  # a minute is short for a thousand forks where others are at work
def test_every_order_of_events_keeps_the_promises() -> None:
    """Exits run exactly once, last in first out, units before their worker, nothing in a child."""
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
