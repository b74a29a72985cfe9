"""The contract of a host: inherit, say how a piece of work is run by it, and run.

A host brackets each piece of work with a unit. What a unit promises must not depend on the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import lifeguard

Work = Callable[[], Any]


class Reports(lifeguard.Observer):
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def callback_failed(self, lifetime: Any, error: BaseException) -> None:
        self.log.append(f"reported {type(error).__name__}")


class HostContract:
    """What lifeguard promises of a piece of work, whoever runs it."""

    is_async = False  #: whether its units take async callbacks
    loud = False  #: whether errors of callbacks are raised where the work itself was fine

    # -- what the author of a host says --------------------------------------------------------

    @contextlib.contextmanager
    def process(self, guard: lifeguard.Lifeguard) -> Iterator[None]:
        """From the beginning to the end of a process that does this host's work."""
        with guard.worker():
            yield

    def call(self, guard: lifeguard.Lifeguard, work: Work) -> None:
        """Run *work* as one unit of this host, and wait for its end. May be called from threads."""
        raise NotImplementedError

    # -- what the tests below are written with -------------------------------------------------

    @pytest.fixture
    def log(self) -> list[str]:
        return []

    @pytest.fixture
    def guard(self, log: list[str]) -> Iterator[lifeguard.Lifeguard]:
        guard = lifeguard.Lifeguard(handle_sigterm=False, observers=[Reports(log)], grace=3)
        yield guard
        guard._worker.end()

    # -- the promises --------------------------------------------------------------------------

    def test_callbacks_run_once_last_first(
        self, guard: lifeguard.Lifeguard, log: list[str]
    ) -> None:
        """Callbacks run once, in reverse, after the work and before the host goes on."""

        def work() -> None:
            for number in range(3):
                guard.callback(log.append, f"callback {number}")
            log.append("work")

        self.call(guard, work)
        log.append("host goes on")

        assert log == ["work", "callback 2", "callback 1", "callback 0", "host goes on"]

    def test_callbacks_run_in_the_works_own_thread(self, guard: lifeguard.Lifeguard) -> None:
        """Sync callbacks run in the thread that did the work."""
        threads: list[int] = []

        def work() -> None:
            threads.append(threading.get_ident())
            guard.callback(lambda: threads.append(threading.get_ident()))

        self.call(guard, work)

        assert len(threads) == 2 and threads[0] == threads[1]

    def test_async_callbacks(self, guard: lifeguard.Lifeguard, log: list[str]) -> None:
        """An async callback is awaited where the unit is async, and refused at once, by name,
        where it is not."""

        async def clean() -> None:
            await asyncio.sleep(0)
            log.append("cleaned")

        def work() -> None:
            if self.is_async:
                guard.callback(clean)
                return
            with pytest.raises(TypeError, match="clean"):
                guard.callback(clean)
            log.append("refused")

        self.call(guard, work)

        assert log == (["cleaned"] if self.is_async else ["refused"])

    @pytest.mark.parametrize("callback_fails", [False, True])
    def test_the_works_exception_is_untouched(
        self, guard: lifeguard.Lifeguard, log: list[str], callback_fails: bool
    ) -> None:
        """The very exception of the work comes out, also when a callback raises as well, which is
        reported."""
        error = ValueError("no")

        def bad() -> None:
            log.append("callback")
            if callback_fails:
                raise KeyError("callback")

        def work() -> None:
            guard.callback(bad)
            raise error

        with pytest.raises(ValueError) as caught:
            self.call(guard, work)

        assert caught.value is error and error.__context__ is None

        assert log == ["callback", *["reported KeyError"] * callback_fails]

    def test_a_callback_that_fails(self, guard: lifeguard.Lifeguard, log: list[str]) -> None:
        """The other callbacks run; the failure is reported, or raised where that is the host's
        way, and never in place of the work's result."""

        def bad() -> None:
            raise KeyError("callback")

        def work() -> None:
            guard.callback(log.append, "the one below")
            guard.callback(bad)

        if self.loud:
            with pytest.raises(lifeguard.CloseErrors) as caught:
                self.call(guard, work)
            assert [type(error) for error in caught.value.exceptions] == [KeyError]
            assert log == ["the one below"]
        else:
            self.call(guard, work)
            assert log == ["the one below", "reported KeyError"]

    def test_each_piece_of_work_is_a_unit(self, guard: lifeguard.Lifeguard) -> None:
        """Each call is a new unit, with a name and an age, and none is left running."""
        units: list[Any] = []

        def work() -> None:
            unit = guard.current.get()
            assert unit is not None
            assert unit in guard._worker.running()
            assert unit.name and unit.age >= 0
            units.append(unit)

        for _ in range(3):
            self.call(guard, work)

        assert len({id(unit) for unit in units}) == 3
        assert guard._worker.running() == []

    def test_no_unit_around_it(self, guard: lifeguard.Lifeguard) -> None:
        """After the work the caller is in no unit: registering there is an error that says so."""
        self.call(guard, lambda: None)
        with pytest.raises((lifeguard.NotOpenError, lifeguard.ClosedError)):
            guard.callback(print)

    def test_inside_of_another_unit(self, guard: lifeguard.Lifeguard, log: list[str]) -> None:
        """Work that begins inside of a unit has its own; the outer one is current again after it
        and keeps its callbacks."""
        with guard.unit("outer") as outer:
            guard.callback(log.append, "outer")
            self.call(guard, lambda: guard.callback(log.append, "inner"))
            log.append("work is over")
            assert guard.current.get() is outer

        assert log == ["inner", "work is over", "outer"]

    def test_resources_are_open_in_it(self, guard: lifeguard.Lifeguard, log: list[str]) -> None:
        """Resources open before the first work, once, and close after the last."""

        @guard.resource
        def db() -> Iterator[str]:
            log.append("opens")
            yield "db"
            log.append("closes")

        def work() -> None:
            guard.callback(lambda: log.append(f"callback with {db.get()}"))
            log.append(f"work with {db.get()}")

        with self.process(guard):
            for _ in range(2):
                self.call(guard, work)

        once = ["work with db", "callback with db"]
        assert log == ["opens", *once, *once, "closes"]

    def test_one_worker_after_another(self, guard: lifeguard.Lifeguard, log: list[str]) -> None:
        """After a worker has ended the next one opens the resources anew."""

        @guard.resource
        def db() -> Iterator[str]:
            log.append("opens")
            yield "db"
            log.append("closes")

        for _ in range(2):
            with self.process(guard):
                self.call(guard, lambda: log.append(db.get()))

        assert log == ["opens", "db", "closes"] * 2


class ThreadedHostContract(HostContract):
    """The same for hosts that do several pieces of work at a time in threads."""

    def test_at_the_same_time(self, guard: lifeguard.Lifeguard, log: list[str]) -> None:
        """Eight pieces of work that overlap, in eight threads: each callback runs once, in its own
        unit."""
        together = threading.Barrier(8)
        units: list[Any] = []

        def work() -> None:
            unit = guard.current.get()
            together.wait(10)
            units.append(unit)
            guard.callback(log.append, "callback")
            together.wait(10)
            assert guard.current.get() is unit

        with self.process(guard), ThreadPoolExecutor(8) as executor:
            for future in [executor.submit(self.call, guard, work) for _ in range(8)]:
                future.result()

        assert log == ["callback"] * 8
        assert len({id(unit) for unit in units}) == 8
