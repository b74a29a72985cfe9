"""A worker: the lifetime of a process that does work.

Resources are entered on it in the order of their definition and left in the reverse, after the
units that use them have ended.
"""

from __future__ import annotations

import os
import weakref

from . import ends, fork
from .alarm import last_resort, limit
from .clock import now
from .errors import explain, redact
from .lifetime import (
    CLOSED,
    CLOSING,
    DISCARDED,
    NEW,
    OPEN,
    OPENING,
    Call,
    Exit,
    Lifetime,
    LoopIsGone,
    adrive,
    drive,
)
from .observer import logger, tell
from .shield import Keeper, Latch, current_task, finish_on, running_loop, shielded, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable
    from typing import Any

    from .guard import Guard
    from .lifetime import Plan, Step
    from .resource import Resource
    from .unit import Unit


class Worker(Lifetime):
    """The lifetime of this process as one that does work. ``with lifeguard.worker():`` opens one.

    One that ends waits for its running units up to the guard's grace, says which ones it gave
    up on, and then closes what was opened, last first.
    """

    __slots__ = (
        "__weakref__",
        "closed",
        "deadline",
        "failure",
        "given_up",
        "guard",
        "holders",
        "loop",
        "opened",
        "opener",
        "pid",
        "serving",
        "task_units",
        "tick",
        "values",
    )

    def __init__(self, guard: Guard, *, awaits: bool) -> None:
        self.guard = guard
        self.pid = os.getpid()
        self.awaits = awaits
        self.state = NEW
        self.serving = False  # what the hosts' fast paths look at: open, and theirs to use
        self.tick = now()  # the time, to the second: units on a loop begin without asking for it
        self.task_units: weakref.WeakKeyDictionary[asyncio.Task[Any], Unit] = (
            weakref.WeakKeyDictionary()
        )
        self.values: dict[Resource[Any], Any] = {}
        self.given_up: set[Unit] = set()
        self.holders = 0
        self.deadline = 0.0  # of its exits, when it closes
        self.loop: asyncio.AbstractEventLoop | None = None
        self.opener: asyncio.Task[Any] | None = None
        self.failure: BaseException | None = None
        self.opened = Latch()  # or failed to
        self.closed = Latch()

    def __str__(self) -> str:
        return f"the worker of process {self.pid}"

    # -- opening -------------------------------------------------------------------------------

    def open(self, resources: Iterable[Resource[Any]]) -> None:
        """Open *resources* in order. If one fails, close those before it and raise."""
        self._is_opening()
        try:
            drive(self._opening(resources, awaits=False))
        except BaseException as exc:
            self.failure = exc
            self._close_failed()
            raise
        self._is_open()

    async def aopen(self, resources: Iterable[Resource[Any]]) -> None:
        """The same where there is an event loop: sync and async resources."""
        self.awaits = True
        self.loop = running_loop()
        self.opener = current_task()
        self._is_opening()
        try:
            await self._notice_end_of_loop()
            await adrive(self._opening(resources, awaits=True), shield=False)
        except BaseException as exc:
            if isinstance(exc, Exception):  # a cancellation would keep what it hit alive
                self.failure = exc
            self.opener = None
            await shielded(self._aclose_failed)
            raise
        self._is_open()

    def enter_more(self, resources: Iterable[Resource[Any]]) -> None:
        """Open what is not open yet: another app has come into the same worker."""
        drive(self._opening(resources, awaits=False))

    async def aenter_more(self, resources: Iterable[Resource[Any]]) -> None:
        if not self.awaits:  # opened by a thread; from now on it has a loop as well
            self.awaits = True
            self.loop = running_loop()
            await self._notice_end_of_loop()
        await adrive(self._opening(resources, awaits=True), shield=False)

    def _opening(self, resources: Iterable[Resource[Any]], *, awaits: bool) -> Plan[None]:
        for resource in resources:
            if resource in self.values:
                continue
            if resource.awaits and not awaits:
                from .resource import USE_ASYNC_WORKER

                raise TypeError(f"{resource} is async: {USE_ASYNC_WORKER}")
            started = now()
            try:
                value, exit_ = yield _Open(resource)
            except Exception as exc:
                exc.add_note(redact(f"while {resource} was opened in process {self.pid}"))
                raise
            self.values[resource] = value  # opened first, registered after
            self.append(_Close(resource, exit_))
            tell(self.guard.observers, "resource_opened", resource, now() - started)

    async def _notice_end_of_loop(self) -> None:
        """Close in order when somebody cancels every task, as ``asyncio.run`` does at its end.

        The task that waits for that keeps the coarse clock, too.
        """

        async def stay(keeper: Keeper) -> None:
            keeper.ready()
            while not await keeper.told_within(1.0):
                self.tick = now()

        keeper = Keeper(stay, "worker")
        keeper.on_cancel = self.end_soon
        await keeper.open()
        self.insert(0, _Unwatch(keeper))

    def _is_opening(self) -> None:
        self.state = OPENING
        fork.watch(self.guard)
        ends.register(self)
        if self.guard.watch_parent is not None:
            self.guard.watch_parent(2 * self.guard.grace + 1)

    def _is_open(self) -> None:
        self.state = OPEN
        self.serving = True
        self.opener = None
        self.opened.set()
        tell(self.guard.observers, "worker_opened", self)

    def _close_failed(self) -> None:
        self.state = OPEN  # not before: nobody may join it now
        try:
            self.close()
        except BaseException as exc:
            self.guard.report(self, exc)
        self.opened.set()

    async def _aclose_failed(self) -> None:
        self.state = OPEN
        try:
            await self.aclose()
        except BaseException as exc:
            self.guard.report(self, exc)
        self.opened.set()

    # -- ending --------------------------------------------------------------------------------

    def _closing(
        self, exc: BaseException | None = None, *, sync_only: bool = False
    ) -> Plan[list[BaseException]]:
        self.serving = False
        failed: list[BaseException] = []
        try:
            yield _WaitForUnits(self)
        except BaseException as error:  # whatever it was, the resources close
            failed.append(error)
        self.deadline = now() + self.guard.grace
        errors = failed + (yield from super()._closing(exc, sync_only=sync_only))
        self._is_closed(errors)
        return errors

    def _step(self, exit_: Exit) -> Step:
        """*exit_* within what is left of the grace; a late one still gets a tenth of that."""
        return _Limited(exit_, max(self.deadline - now(), self.guard.grace / 10))

    def _is_closed(self, errors: list[BaseException]) -> None:
        self.state = CLOSED
        self.values.clear()
        ends.forget(self)
        self.closed.set()
        tell(self.guard.observers, "worker_closed", self, errors)

    def close(self, exc: BaseException | None = None) -> None:
        if self.loop is not None and finish_on(self.loop, self.aclose, 2 * self.guard.grace + 1):
            return
        super().close(exc)

    async def aclose(self, exc: BaseException | None = None, *, grace: float | None = None) -> None:
        await super().aclose(exc, grace=self.guard.grace if grace is None else grace)

    def end_soon(self) -> None:
        """Close on the loop that runs here, and do not wait for it."""
        spawn(self._aclose_quietly)

    async def _aclose_quietly(self) -> None:
        try:
            await self.aclose()
        except BaseException as exc:
            self.guard.report(self, exc)

    def end(self) -> None:
        """Close from outside, at the end of the process: whatever can still be done is done."""
        if self.pid != os.getpid() or (self.state is not OPEN and self.state is not OPENING):
            return
        grace = self.guard.grace
        with last_resort(4 * grace + 1):  # units, exits, and both once more, late
            try:
                if not self.awaits:
                    self.opened.wait(grace)  # another thread may be at it
                    self.state = OPEN if self.state is OPENING else self.state
                    self.close()
                elif not self._finish_on_loop(_BRIEF if ends.is_late() else grace * 2):
                    self.state = OPEN if self.state is OPENING else self.state
                    self.abandon()
            except Exception as exc:
                self.guard.report(self, exc)

    def _finish_on_loop(self, seconds: float) -> bool:
        """Close on the worker's own loop. False where that cannot be."""
        if self.loop is None:  # trio has none to be run again
            return False
        try:
            return finish_on(self.loop, self._aend, seconds)
        except TimeoutError:
            if self.state is OPEN or self.state is OPENING:
                return False  # nothing runs on this loop any more: something blocks it
            raise

    async def _aend(self) -> None:
        if self.opener is not None:  # it opens what the process will not use any more
            self.opener.cancel()
            await self.opened.wait_async()
        await self._aclose_quietly()

    def is_closing(self) -> bool:
        return self.state is CLOSING

    def abandon(self) -> None:
        """Close without the event loop, which is gone: sockets are shut, callbacks are reported."""
        if not self._claim():
            return
        self.serving = False
        units = _WaitForUnits(self)
        units.find()
        units.give_up("its event loop is gone")
        cut: list[str] = []  # what was closed without a word to whoever used it
        lost: list[str] = []
        errors: list[BaseException] = []
        while self:
            exit_ = self.pop()
            what = str(exit_)
            try:
                with limit(self.guard.grace, what):
                    if not exit_.abandon():
                        cut.append(what)
            except LoopIsGone:
                lost.append(what)
            except BaseException as exc:
                errors.append(exc)
        self._is_closed(errors)
        for error in errors:
            self.guard.report(self, error)
        if cut or lost:
            said = [
                f"Closed abruptly (Terminate sent, sockets shut): {'; '.join(cut)}." if cut else "",
                f"Could not run: {'; '.join(lost)}." if lost else "",
            ]
            logger("worker").log(
                40 if lost else 30,  # logging.ERROR, logging.WARNING
                "%s ended after its event loop was gone. %s Let the server start and stop the "
                "app, or close the worker before the loop.",
                self,
                " ".join(filter(None, said)),
                extra={"lifeguard_pid": self.pid},
            )

    async def drain(self) -> None:
        """Wait for the units that run now, at most the grace: the app is about to shut down.

        What a unit uses may be the app's own, so the app ends after its units. A unit that was
        given up on here is not waited for again when the worker closes.
        """
        waiting = _WaitForUnits(self).run(awaits=True)
        if waiting is not None:
            await waiting

    def running(self) -> list[Unit]:
        """The units that are running now.

        Nobody keeps a list of them: adding and removing would be a fifth of what a unit costs.
        The garbage collector knows every container there is, and is asked once, here.
        """
        import gc

        from .unit import Unit

        return [
            unit
            for unit in gc.get_objects()
            # not isinstance: that asks proxies for their __class__, which is code of the app
            if issubclass(type(unit), Unit)
            and getattr(unit, "worker", None) is self
            and hasattr(unit, "started")  # set last: not one that a thread is just making
            and unit.state is not CLOSED
        ]

    def after_fork(self) -> None:
        """This is a child: forget the worker and its units, close nothing."""
        if self.state is CLOSED or self.state is DISCARDED:
            return
        for resource in self.values:
            resource.inherit(self.pid)
        fork.keep((dict(self.values), self.loop))
        self.values = {}
        self.serving = False
        self.discard()


_BRIEF = 0.25  # seconds for a loop that may be blocked, where there is no time to lose


class _Open:
    """The step that opens one resource."""

    __slots__ = ("resource",)

    def __init__(self, resource: Resource[Any]) -> None:
        self.resource = resource

    def run(self, awaits: bool) -> Any:
        return self.resource.open(awaits)


class _Close(Exit):
    """The exit of one resource, under its name."""

    __slots__ = ("awaits", "exit", "resource")

    def __init__(self, resource: Resource[Any], exit_: Exit) -> None:
        self.resource = resource
        self.exit = exit_
        self.awaits = exit_.awaits

    def run(self, awaits: bool) -> object:
        return self.exit.run(awaits)

    def end(self, exc: BaseException | None) -> None:
        self.exit.end(exc)

    def abandon(self) -> bool:
        return self.exit.abandon()

    def __str__(self) -> str:
        return f"closing {self.resource}"


class _Limited:
    """A step that may not block for longer than so many seconds."""

    __slots__ = ("seconds", "step")

    def __init__(self, step: Step, seconds: float) -> None:
        self.step = step
        self.seconds = seconds

    def run(self, awaits: bool) -> Any:
        with limit(self.seconds, self.step):
            return self.step.run(awaits)

    def __str__(self) -> str:
        return str(self.step)


class _Unwatch(Call):
    """Ends the task that notices the end of the loop. Nothing is lost if the loop is gone."""

    __slots__ = ("keeper",)

    def __init__(self, keeper: Keeper) -> None:
        super().__init__(keeper.close, awaits=True)
        self.keeper = keeper

    def abandon(self) -> bool:
        return True


class _WaitForUnits:
    """The step that waits for the running units, and says which ones it gives up on.

    It registers a last exit on every unit: that is how one hears of the end of a lifetime.
    """

    __slots__ = ("_over", "_pending", "worker")

    bounded = True  # it looks at the clock itself, to say what it gave up on

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._pending: set[Unit] = set()
        self._over = Latch()

    def run(self, awaits: bool) -> Any:
        self.find()
        if not self._pending:
            return None
        return self._await_all() if awaits else self._wait_all()

    def find(self) -> None:
        """Hear of the end of each unit that runs now."""
        mine = self.worker.guard.current.get()
        waiting: list[Unit] = []
        for unit in self.worker.running():
            if unit is mine:
                continue  # this very unit closes the worker: it cannot be waited for in here
            if unit in self.worker.given_up or not (unit or unit.awaited):
                continue
            waiting.append(unit)
        self._pending.update(waiting)
        for unit in waiting:
            unit.insert(0, Call(self._ended, (unit,), awaits=False))  # the first one runs last
            if unit.state is CLOSED:
                self._ended(unit)

    def _ended(self, unit: Unit) -> None:
        self._pending.discard(unit)
        if not self._pending:
            self._over.set()

    def _wait_all(self) -> None:
        try:
            with ends.cut_short_by_signals(self._over.set_soon):
                # Now and then it wakes up, to hear of a signal that came in the moment before it
                # fell asleep: that one is noted, but wakes nobody.
                until = now() + self.worker.guard.grace
                while not self._over.wait(min(until - now(), 0.1)) and now() < until:
                    pass
        finally:
            self.give_up()

    async def _await_all(self) -> None:
        import anyio

        try:
            with (
                ends.cut_short_by_signals(self._over.set_soon),
                anyio.move_on_after(self.worker.guard.grace),
            ):
                await self._over.wait_async()
        finally:
            self.give_up()

    def give_up(self, why: str = "") -> None:
        """Say which units are still running, and take back what they have borrowed."""
        if not why:
            why = f"it was given {self.worker.guard.grace:g} s to end (grace)"
            if self._over.is_set():
                why = "its grace was cut short, for whoever ends this process waits no longer"
        for unit in list(self._pending):
            self.worker.given_up.add(unit)
            age = unit.age
            logger("worker").warning(
                "%s closes although %s is still running, %.1f s after it began%s: %s. "
                "What it uses is closed now.",
                self.worker,
                str(unit),  # now: it forgets its name with its end
                age,
                f" at {unit.place}" if unit.place else "",
                why,
                extra={"lifeguard_unit": unit.name, "lifeguard_age": age},
            )
            tell(self.worker.guard.observers, "unit_given_up", unit, age)
            for out in unit.borrows():
                try:
                    unit.remove(out)
                except ValueError:  # returned in this moment
                    continue
                try:
                    out.lender.take_back(out.thing, False)
                except Exception as exc:
                    self.worker.guard.report(unit, exc)


def failed_to_open(exc: BaseException) -> str:
    """Why the worker did not open, for a server's log: no secrets, one line and the notes."""
    notes = " ".join(getattr(exc, "__notes__", ()))
    return redact(f"{explain(exc)} ({notes})" if notes else explain(exc))


__all__ = ["Worker", "failed_to_open"]
