"""A unit: the lifetime of one piece of work (a request, a websocket, a task, a thread's job).

It is a lifetime, and it is "the current one" while the work runs. What the work borrows is an
exit on it like any other: a leak is a borrow that is still there when the unit ends.
"""

from __future__ import annotations

from .clock import now
from .errors import ClosedError, LeakWarning, WrongProcessError, summarize
from .lifetime import (
    CLOSED,
    CLOSING,
    DISCARDED,
    NEW,
    OPEN,
    Exit,
    Lifetime,
    adrive,
    describe,
    drive,
    raise_fatal,
)
from .shield import current_task, shielded, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from contextvars import Token
    from types import CodeType, TracebackType
    from typing import Any, Protocol, Self

    from .guard import Guard
    from .worker import Worker

    class Lender(Protocol):
        """Where something was borrowed from: a pool's adapter."""

        @property
        def name(self) -> str: ...
        @property
        def awaits(self) -> bool: ...
        def take_back(self, thing: Any, awaits: bool) -> object: ...


class Borrow(Exit):
    """Something that left a pool in a unit. Its exit takes it back and says who forgot it."""

    __slots__ = ("frames", "lender", "task", "thing", "unit")

    unit: Unit
    lender: Lender
    thing: Any
    task: asyncio.Task[Any] | None  #: who holds it, where that can outlive the unit
    frames: list[Any]  #: code, instruction, code, instruction, ...: formatted only when shown

    @property
    def awaits(self) -> bool:  # type: ignore[override]
        return self.lender.awaits

    def run(self, awaits: bool) -> object:
        leak = Leak(self)
        result = self.lender.take_back(self.thing, awaits)
        self.unit.worker.guard.report_leak(leak)
        return result

    def abandon(self) -> object:
        return self.run(awaits=False)

    def stack(self) -> list[str]:
        """Where it was borrowed, outermost call first: ``file.py:12 in function``."""
        pairs = self._pairs()
        shown = [pair for pair in pairs if not _is_plumbing(pair[0])] or pairs
        return [
            f"{code.co_filename}:{_line(code, last)} in {code.co_qualname}"
            for code, last in reversed(shown)
        ]

    def _pairs(self) -> list[tuple[CodeType, int]]:
        return list(zip(self.frames[::2], self.frames[1::2], strict=True))

    def place(self) -> tuple[str, int]:
        """File and line of the innermost caller, for ``warnings``."""
        for code, last in self._pairs():
            if not _is_plumbing(code):
                return code.co_filename, _line(code, last)
        return "unknown place", 0

    def __str__(self) -> str:
        return f"return of a connection to pool {self.lender.name!r}"


class Leak:
    """What is known of a borrow that was not given back, put into words."""

    def __init__(self, borrow: Borrow) -> None:
        self.borrow = borrow
        self.pool = borrow.lender.name
        self.unit = borrow.unit.name
        self.age = borrow.unit.age
        self.stack = borrow.stack()

    def __str__(self) -> str:
        where = "\n".join(f"  {line}" for line in self.stack) or "  (no stack was kept)"
        return (
            f"pool {self.pool!r}: a connection borrowed in unit {self.unit!r} was not given back "
            f"by the unit's end, {self.age:.3f} s after it began. It was closed and its place in "
            "the pool freed. Give it back in a `finally`, or borrow with `with pool.connection()`."
            f" Borrowed at (most recent call last):\n{where}"
        )


class Unit(Lifetime):
    """The lifetime of one piece of work. ``with lifeguard.unit():`` makes one.

    It is entered once, with ``with`` or ``async with``, and ends with the block: first what was
    registered last. Errors of callbacks come out as :exc:`CloseErrors` where the block itself did
    not raise; where it did, its exception comes out unchanged and they are logged.
    """

    __slots__ = ("_guard", "_token", "source", "started", "worker")

    source: Any
    started: float
    worker: Worker

    def __init__(self, guard: Guard, source: object) -> None:
        self._guard = guard
        self.source = source
        self.awaits = False
        self.state = NEW

    # -- what people ask -----------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The work as a person would name it. Never its parameters."""
        return self.source if isinstance(self.source, str) else describe(self.source)

    @property
    def age(self) -> float:
        """Seconds since it began."""
        return now() - self.started

    def __str__(self) -> str:
        return f"unit {self.name!r}"

    # -- with ----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._once()
        self._begin(self._guard.worker_for_unit())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._guard.current.reset(self._token)
        self.conclude(exc, loud=True)

    async def __aenter__(self) -> Self:
        self._once()
        self.awaits = True
        self._begin(await self._guard.aworker_for_unit())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._guard.current.reset(self._token)
        await self.aconclude(exc, loud=True)

    def _once(self) -> None:
        if self.state is not NEW:
            raise ClosedError(f"{self} was entered before: make a new one with lifeguard.unit()")

    def _begin(self, worker: Worker) -> None:
        self.worker = worker
        self.started = now()
        self.state = OPEN
        worker.units.add(self)
        self._token: Token[Unit | None] = self._guard.current.set(self)

    # -- ending --------------------------------------------------------------------------------

    def conclude(self, exc: BaseException | None, *, loud: bool = False) -> None:
        """End it here, in this thread. *loud*: raise what callbacks raised, if *exc* is None."""
        if self._claim_or_finish():
            errors = drive(self._closing(exc))
            self.worker.units.discard(self)
            self._tell(errors, exc, loud)
        else:
            self.worker.units.discard(self)

    async def aconclude(self, exc: BaseException | None, *, loud: bool = False) -> None:
        """End it on this event loop: sync exits at once, the rest shielded and bounded."""
        if not self._claim_or_finish():
            self.worker.units.discard(self)
            return
        self._hand_over()
        errors = drive(self._closing(exc, sync_only=True))
        if self:
            errors += await shielded(self._afinish, exc)
        self.worker.units.discard(self)
        self._tell(errors, exc, loud)

    def drop(self) -> None:
        """End it where nothing can be awaited: its coroutine is being thrown away.

        Sync exits run. Async ones run on the loop if it still does, else what can be done without
        one is done.
        """
        if not self._claim_or_finish():
            self.worker.units.discard(self)
            return
        errors = drive(self._closing(None, sync_only=True))
        if self:
            try:
                spawn(self._afinish_dropped)
            except Exception:  # no loop runs here any more
                errors += self._abandon_all()
            else:
                self._tell(errors, None, loud=False)
                return
        self.worker.units.discard(self)
        self._tell(errors, None, loud=False)

    def _claim_or_finish(self) -> bool:
        """True if there is something to run and it is ours. A fast path may have set CLOSED."""
        if self.state is CLOSED and self:
            self.state = CLOSING
            return True
        return self._claim()

    async def _afinish(self, exc: BaseException | None) -> list[BaseException]:
        return await adrive(self._closing(exc), grace=self.worker.guard.grace)

    async def _afinish_dropped(self) -> None:
        errors = await self._afinish(None)
        self.worker.units.discard(self)
        self._tell(errors, None, loud=False)

    def _abandon_all(self) -> list[BaseException]:
        errors: list[BaseException] = []
        while self:
            try:
                self.pop().abandon()
            except BaseException as exc:
                errors.append(exc)
        self.state = CLOSED
        return errors

    def _tell(self, errors: list[BaseException], exc: BaseException | None, loud: bool) -> None:
        if not errors:
            return
        if loud and exc is None:
            raise summarize(f"{self} ended with errors", errors)
        for error in errors:
            self.worker.guard.report(self, error)
        if exc is None:
            raise_fatal(errors)

    # -- borrows -------------------------------------------------------------------------------

    def borrows(self) -> list[Borrow]:
        """What is out now."""
        return [exit_ for exit_ in list(self) if isinstance(exit_, Borrow)]

    def _hand_over(self) -> None:
        """What a task holds that outlives this unit goes on into a unit of that task's own."""
        me: asyncio.Task[Any] | None = None
        for out in self.borrows():
            if out.task is None or out.task.done():
                continue
            me = me or current_task()
            if out.task is me:
                continue
            try:
                self.remove(out)
            except ValueError:  # returned in this moment
                continue
            out.unit = own = unit_of_task(self.worker, out.task)
            own.append(out)

    def give_to(self, other: Unit) -> None:
        """Move what is out to *other*, which this unit is a part of."""
        for out in self.borrows():
            try:
                self.remove(out)
            except ValueError:
                continue
            out.unit = other
            other.append(out)

    def check(self) -> None:
        if self.state is DISCARDED:
            raise WrongProcessError(
                f"{self} belongs to the process that this one was forked from: begin a unit of "
                "this process with `with lifeguard.unit():`"
            )
        if self.state is CLOSED:
            raise ClosedError(
                f"{self} has ended, and this code outlives it: give it a unit of its own with "
                "`with lifeguard.unit():`"
            )
        if self.state is NEW:
            raise ClosedError(f"{self} has not begun: enter it with `with` first")


class _TaskUnit(Unit):
    """The unit of a task that outlived the unit it was started in. It ends with the task."""

    __slots__ = ()


def unit_of_task(worker: Worker, task: asyncio.Task[Any]) -> Unit:
    """The unit of *task*'s own, which ends when *task* does."""
    unit = worker.task_units.get(task)
    if unit is not None and unit.state is OPEN:
        return unit
    unit = _TaskUnit(worker.guard, f"task {task.get_name()}, which outlived its unit")
    unit.awaits = True
    unit.worker = worker
    unit.started = now()
    unit.state = OPEN
    worker.units.add(unit)
    worker.task_units[task] = unit
    own = unit

    def end(_: object) -> None:
        own.drop()

    task.add_done_callback(end)  # runs on the task's loop: the place where its clean-up belongs
    return unit


def _is_plumbing(code: CodeType) -> bool:
    """Whether a frame says nothing about who borrowed: the pool, the loop, this package."""
    parts = code.co_filename.replace("\\", "/").split("/")
    return parts[-1] == "contextlib.py" or not _PLUMBING.isdisjoint(parts[-3:-1])


_PLUMBING = {"asyncio", "concurrent", "lifeguard", "psycopg_pool", "anyio", "trio"}


def _line(code: CodeType, instruction: int) -> int:
    """The line of *instruction* (PEP 626)."""
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return line
    return code.co_firstlineno


def warn(leak: Leak) -> None:
    """Issue a LeakWarning at the place of the borrow."""
    import warnings

    filename, line = leak.borrow.place()
    warnings.warn_explicit(LeakWarning(str(leak)), None, filename, line, source=None)
