"""A unit: the lifetime of one piece of work (a request, a websocket, a task, a thread's job).

It is a lifetime, and it is "the current one" while the work runs. What the work borrows is an
exit on it like any other: a leak is a borrow that is still there when the unit ends.
"""

from __future__ import annotations

from _thread import _local  # not threading, which costs 2 ms more at import

from .clock import now
from .errors import ClosedError, LeakWarning, WrongProcessError, summarize
from .lifetime import (
    CLOSED,
    CLOSING,
    DISCARDED,
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
    from types import CodeType, FrameType, TracebackType
    from typing import Any, Protocol

    from .guard import Guard
    from .worker import Worker

    class Lender(Protocol):
        """Where something was borrowed from: a pool's adapter."""

        @property
        def name(self) -> str: ...
        @property
        def awaits(self) -> bool: ...
        @property
        def how(self) -> str: ...
        def take_back(self, thing: Any, awaits: bool) -> object: ...


class _Here(_local):
    """What belongs to this thread, whatever context its code was given."""

    job: Unit | None = None  #: the unit of the executor's job that runs here


here = _Here()

FULL_STACK = 12  #: callers kept of a borrow where something leaked before


class Borrow(Exit):
    """Something of a pool's, and the unit that has it out. Its exit takes it back.

    There is one for each thing that can be borrowed, made at its first borrow and kept: *unit* is
    None while the thing is in. So a borrow costs an append, a return a remove.
    """

    __slots__ = ("frames", "lender", "task", "thing", "unit")

    def __init__(self, lender: Lender, thing: Any) -> None:
        self.lender = lender
        self.thing = thing
        self.unit: Unit | None = None
        self.task: asyncio.Task[Any] | None = None  # who holds it, where that outlives units
        # code, instruction, code, instruction, ... innermost first: put into words only if shown
        self.frames: tuple[Any, ...] = ()

    @property
    def awaits(self) -> bool:  # type: ignore[override]
        return self.lender.awaits

    def run(self, awaits: bool) -> object:
        unit, self.unit = self.unit, None
        assert unit is not None  # it is out, or it would not be on a unit
        leak = Leak(self, unit)
        result = self.lender.take_back(self.thing, awaits)
        unit.worker.guard.report_leak(leak)
        return result

    def abandon(self) -> bool:
        self.run(awaits=False)
        return True

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


def callers(frame: FrameType | None, depth: int) -> tuple[Any, ...]:
    """*frame* and who called it, as a borrow keeps them, at most *depth*."""
    frames: list[Any] = []
    while frame is not None and depth > 0:
        frames += (frame.f_code, frame.f_lasti)
        frame = frame.f_back
        depth -= 1
    return tuple(frames)


class Leak:
    """What is known of a borrow that was not given back, put into words."""

    def __init__(self, borrow: Borrow, unit: Unit) -> None:
        self.borrow = borrow
        self.pool = borrow.lender.name
        self.unit = unit.name
        self.how = borrow.lender.how
        self.age = unit.age
        self.stack = borrow.stack()

    def __str__(self) -> str:
        where = "\n".join(f"  {line}" for line in self.stack) or "  (no stack was kept)"
        return (
            f"pool {self.pool!r}: a connection borrowed in unit {self.unit!r} was not given back "
            f"by the unit's end. It was closed and its place in "
            f"the pool freed. Give it back in a `finally`, or borrow with {self.how}."
            f" Borrowed at (most recent call last):\n{where}"
        )


class Unit(Lifetime):
    """The lifetime of one piece of work. ``with lifeguard.unit() as unit:`` gives one.

    It ends with the work: what was registered last goes first.
    """

    __slots__ = ("source", "started", "worker")

    source: Any  #: what the work is; a host's subclass makes a name of it
    started: float  #: in a loop's worker to the second, see Worker.tick
    worker: Worker

    awaited = True  #: whether a worker that closes waits for it, even if it holds nothing

    if TYPE_CHECKING:

        def __init__(self) -> None: ...
    else:
        # One allocation and nothing else: whoever makes a unit on a hot path sets what it needs.
        __init__ = list.__init__

    # -- what people ask -----------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The work as a person would name it. Never its parameters."""
        return self.source if isinstance(self.source, str) else describe(self.source)

    @property
    def place(self) -> str:
        """Where it began, as far as the name does not say so."""
        return ""

    @property
    def age(self) -> float:
        """Seconds since it began."""
        return max(0.0, now() - self.started)

    def __str__(self) -> str:
        return f"unit {self.name!r}"

    # -- ending --------------------------------------------------------------------------------

    def conclude(self, exc: BaseException | None, *, loud: bool = False) -> None:
        """End it here, in this thread. *loud*: raise what callbacks raised, if *exc* is None."""
        if self._claim_or_finish():
            self._tell(drive(self._closing(exc)), exc, loud)

    async def aconclude(self, exc: BaseException | None, *, loud: bool = False) -> None:
        """End it on this event loop: sync exits at once, the rest shielded and bounded."""
        if not self._claim_or_finish():
            return
        self._hand_over()
        errors = drive(self._closing(exc, sync_only=True))
        if self:
            errors += await shielded(self._afinish, exc)
        self._tell(errors, exc, loud)

    def drop(self) -> None:
        """End it where nothing can be awaited: its coroutine is being thrown away.

        Sync exits run. Async ones run on the loop if it still does, else what can be done without
        one is done.
        """
        if not self._claim_or_finish():
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
        self._tell(errors, None, loud=False)

    def _claim(self) -> bool:
        if self.worker.state is DISCARDED:  # a fork tells the worker, which keeps no list of units
            self.discard()
            return False
        return super()._claim()

    def _claim_or_finish(self) -> bool:
        """True if there is something to run and it is ours. A fast path may have set CLOSED."""
        if self.state is CLOSED and self and self.worker.state is not DISCARDED:
            self.state = CLOSING
            return True
        return self._claim()

    async def _afinish(self, exc: BaseException | None) -> list[BaseException]:
        return await adrive(self._closing(exc), grace=self.worker.guard.grace)

    async def _afinish_dropped(self) -> None:
        errors = await self._afinish(None)
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
        held = [out for out in self if type(out) is Borrow and out.task is not None]
        if not held:
            return
        me = current_task()
        for out in held:
            if out.task is None or out.task is me or out.task.done():
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
        if self.state is DISCARDED or self.worker.state is DISCARDED:
            raise WrongProcessError(
                f"{self} belongs to the process that this one was forked from: begin a unit of "
                "this process with `with lifeguard.unit():`"
            )
        if self.state is CLOSED:
            raise ClosedError(
                f"{self} has ended, and this code outlives it: give it a unit of its own with "
                "`with lifeguard.unit():`"
            )


class NamedUnit(Unit):
    """A unit whose name says nothing of where it began."""

    __slots__ = ()

    @property
    def name(self) -> str:
        return str(self.source[0])

    @property
    def place(self) -> str:
        return str(self.source[1])


class UnitBlock:
    """A unit for a ``with`` or ``async with`` block. See :meth:`lifeguard.unit`.

    Errors of callbacks come out as :exc:`CloseErrors` where the block itself did not raise; where
    it did, its exception comes out unchanged and they are logged.
    """

    __slots__ = ("_guard", "_name", "_place", "_token", "_unit")

    def __init__(self, guard: Guard, name: str, place: str) -> None:
        self._guard = guard
        self._name = name
        self._place = place
        self._unit: Unit | None = None

    def __enter__(self) -> Unit:
        self._once()
        return self._begin(self._guard.worker_for_unit(), awaits=False)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._end().conclude(exc, loud=True)

    async def __aenter__(self) -> Unit:
        self._once()
        return self._begin(await self._guard.aworker_for_unit(), awaits=True)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        unit = self._end()
        if isinstance(exc, GeneratorExit):  # thrown away: whoever does that waits for nothing
            unit.drop()
            return
        await unit.aconclude(exc, loud=True)

    def _once(self) -> None:
        if self._unit is not None:
            raise ClosedError(
                f"{self._unit} was entered before: make a new one with lifeguard.unit()"
            )

    def _begin(self, worker: Worker, *, awaits: bool) -> Unit:
        self._unit = unit = NamedUnit() if self._name else Unit()
        unit.awaits = awaits
        unit.source = (self._name, self._place) if self._name else self._place
        unit.worker = worker
        unit.started = now()
        unit.state = OPEN
        self._token: Token[Unit | None] = self._guard.current.set(unit)
        return unit

    def _end(self) -> Unit:
        unit = self._unit
        assert unit is not None
        try:
            self._guard.current.reset(self._token)
        except ValueError:
            pass  # in a generator that is finished elsewhere than it was begun: a streamed body
        return unit


def unit_of_task(worker: Worker, task: asyncio.Task[Any]) -> Unit:
    """The unit of *task*'s own, which ends when *task* does."""
    unit = worker.task_units.get(task)
    if unit is not None and unit.state is OPEN:
        return unit
    unit = Unit()
    unit.source = f"task {task.get_name()}, which outlived its unit"
    unit.awaits = True
    unit.worker = worker
    unit.started = now()
    unit.state = OPEN
    worker.task_units[task] = own = unit

    def end(_: object) -> None:
        own.drop()

    task.add_done_callback(end)  # runs on the task's loop: the place where its clean-up belongs
    return unit


def _is_plumbing(code: CodeType) -> bool:
    """Whether a frame says nothing about who borrowed: the pool, the loop, this package."""
    parts = code.co_filename.replace("\\", "/").split("/")
    return parts[-1] in ("contextlib.py", "threading.py") or not plumbing.isdisjoint(parts[-3:-1])


#: Packages whose frames say nothing about who borrowed. The module of a pool adds the pool's.
plumbing = {"asyncio", "concurrent", "lifeguard", "anyio", "trio"}


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
