"""A guard: inert definitions, and this process's worker.

The module functions of ``lifeguard`` are the methods of a default one. Tests and libraries make
their own, and share nothing with it.
"""

from __future__ import annotations

import contextvars
import itertools
import weakref
from _thread import RLock  # not threading, which costs 2 ms more at import

from . import ends, fork
from .errors import ClosedError, LifeguardError, NotOpenError, explain
from .lifetime import CLOSED, CLOSING, OPEN, OPENING
from .observer import logger, tell
from .resource import Resource, caller, check_definition, unique
from .shield import current_task, running_loop, shielded
from .unit import FULL_STACK, Leak, Unit, UnitBlock, here, unit_of_task, warn
from .worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Callable,
        Generator,
        Iterable,
        Iterator,
        Sequence,
    )
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from types import CodeType, TracebackType
    from typing import Any, ParamSpec, Protocol, TypeVar, overload

    from .lifetime import Lifetime
    from .observer import Observer
    from .unit import Borrow

    P = ParamSpec("P")
    T = TypeVar("T")

    class Home(Protocol):
        """Where the worker of a process without an event loop of its own opens."""

        def worker(self) -> Worker: ...


_numbers = itertools.count(1)


class Guard:
    """Definitions of resources, and the worker that has them open: :class:`lifeguard.Lifeguard`."""

    def __init__(
        self,
        *,
        grace: float = 10.0,
        open_timeout: float = 30.0,
        stack: int = 2,
        observers: Sequence[Observer] = (),
        handle_sigterm: bool = True,
        die_with_parent: bool = False,
    ) -> None:
        options: dict[str, object] = {
            "grace": grace,
            "open_timeout": open_timeout,
            "stack": stack,
        }
        for name, value in options.items():
            if not isinstance(value, (int, float)) or value < 0:
                raise ValueError(f"{name} must be a number of at least 0, not {value!r}")
        self.grace = grace
        self.open_timeout = open_timeout
        self.stack = stack
        self.observers = tuple(observers)
        self.handle_sigterm = handle_sigterm
        self.die_with_parent = die_with_parent
        number = next(_numbers)
        self.key = "lifeguard" if number == 1 else f"lifeguard.{number}"
        self.current: contextvars.ContextVar[Unit | None] = contextvars.ContextVar(
            f"{self.key}.unit", default=None
        )
        self._defined: list[Resource[Any]] = []
        self._adopted: weakref.WeakValueDictionary[int, Resource[Any]] = (
            weakref.WeakValueDictionary()
        )
        # Where leaks came from, by id, for the hash of a code object is dear.
        self.suspects: dict[int, CodeType] = {}
        self.two_callers = stack == 2  # and no suspects: what the fast path of a borrow asks
        # In whatever the opening of this guard's worker calls, threads of asyncio.to_thread too.
        self._opens: contextvars.ContextVar[bool] = contextvars.ContextVar(
            f"{self.key}.opens", default=False
        )
        self.home: Home | None = None
        self._lock = RLock()
        self._worker = Worker(self, awaits=False)  # never opened: "off" is an object too
        if die_with_parent:
            from . import parent  # now: it notes who the parent is

            fork.watch(self)
            self.watch_parent: Callable[[float], None] | None = parent.watch
        else:
            self.watch_parent = None

    # -- definitions ---------------------------------------------------------------------------

    if TYPE_CHECKING:

        @overload
        def resource(self, source: Callable[[], AsyncGenerator[T, None]], /) -> Resource[T]: ...
        @overload
        def resource(self, source: Callable[[], AsyncIterator[T]], /) -> Resource[T]: ...
        @overload
        def resource(self, source: Callable[[], Generator[T, None, None]], /) -> Resource[T]: ...
        @overload
        def resource(self, source: Callable[[], Iterator[T]], /) -> Resource[T]: ...
        @overload
        def resource(
            self, source: Callable[[], AbstractAsyncContextManager[T]], /
        ) -> Resource[T]: ...
        @overload
        def resource(self, source: Callable[[], AbstractContextManager[T]], /) -> Resource[T]: ...

    def resource(self, source: Any, /) -> Any:
        """Declare something that is opened once per worker. Nothing happens at import.

        Decorate a generator function, sync or async, that yields the opened value once; or a
        function that returns a context manager. Resources open in the order of their declaration
        and close in the reverse. Raises :exc:`TypeError` for anything else.

        Example::

            @lifeguard.resource
            async def db():
                async with AsyncConnectionPool(DSN, open=False, max_size=8) as pool:
                    yield pool

            db.get()
        """
        check_definition(source)
        return self.define(Resource(source, guard=self))

    def define(self, resource: Resource[T]) -> Resource[T]:
        """Open *resource* in every worker from now on, after those that were defined before."""
        self._defined.append(resource)
        fork.watch(self)
        return resource

    def adopt(self, obj: object) -> Resource[Any]:
        """The resource of an object that opens and closes: one per object, whoever passes it."""
        if isinstance(obj, Resource):
            if obj._guard is not self:
                raise TypeError(f"{obj} was declared on another Lifeguard: use one for both")
            return obj
        resource = self._adopted.get(id(obj))
        if resource is None or resource._source is not obj:
            resource = Resource(obj, guard=self, made=caller())
            self._adopted[id(obj)] = resource
            fork.watch(self)
        return resource

    # -- the worker ----------------------------------------------------------------------------

    def worker(self, *, resources: Iterable[object] = ()) -> WorkerBlock:
        """Keep the worker open for a block: scripts, management commands, tests.

        ``with lifeguard.worker():`` opens sync resources, ``async with`` both kinds. Inside a
        process whose worker is open already (under a server) it holds that one open. Raises what
        opening raises, and :exc:`CloseErrors` for what closing raised.
        """
        return WorkerBlock(self, [self.adopt(obj) for obj in resources])

    def acquire(self, resources: Iterable[Resource[Any]] = (), *, hold: bool = True) -> Worker:
        """Open the worker, or join the one that is open. One holder more.

        Without *hold* it stays open until its holders have left, or, if there is none, until the
        end of the process: that is for work that finds no worker open.
        """
        fork.notice()
        with self._lock:  # other threads wait here until it is open
            self._drop_dead()
            worker = self._worker
            if worker.state is OPEN or worker.state is OPENING:
                if worker.state is OPEN:
                    worker.enter_more(unique(resources))
                worker.holders += hold
                return worker
            self._refuse_while_closing(worker)
            fork.say_failed()
            self._worker = worker = Worker(self, awaits=False)
            worker.holders = int(hold)
            token = self._opens.set(True)
            try:
                worker.open(unique([*self._defined, *resources]))
            finally:
                self._opens.reset(token)
            return worker

    async def aacquire(
        self, resources: Iterable[Resource[Any]] = (), *, hold: bool = True
    ) -> Worker:
        """The same where there is an event loop."""
        fork.notice()
        while True:
            with self._lock:
                self._drop_dead()
                worker = self._worker
                if worker.state not in (OPEN, OPENING, CLOSING):
                    fork.say_failed()
                    self._worker = worker = Worker(self, awaits=True)
                    worker.holders = int(hold)
                    worker.state = OPENING
                    break
                state = worker.state
                if state is OPEN:
                    worker.holders += hold
            if state is OPEN:
                try:
                    await worker.aenter_more(unique(resources))
                except BaseException:
                    worker.holders -= hold
                    raise
                return worker
            if state is OPENING:
                await worker.opened.wait_async()
                if isinstance(worker.failure, Exception):
                    raise worker.failure
                continue  # open now, or its opener was cancelled and we were not: it is our turn
            await worker.closed.wait_async()
        token = self._opens.set(True)
        try:
            await worker.aopen(unique([*self._defined, *resources]))
        finally:
            self._opens.reset(token)
        return worker

    def release(self) -> None:
        """Give back, before a long wait, what the current unit has borrowed so far.

        The connections are closed and their places in the pool are free again: whoever still has
        a hold of one cannot do harm with it. An open transaction is rolled back, so commit first.
        Raises :exc:`NotOpenError` outside a unit.
        """
        unit = self._current("release()")
        for out in unit.borrows():
            if out.awaits:
                raise TypeError(
                    f"pool {out.lender.name!r} is async: `await lifeguard.arelease()` instead"
                )
            out.lender.take_back(out.thing, False)
            self._released(unit, out)

    async def arelease(self) -> None:
        """Give back, before a long stream, what the current unit has borrowed so far.

        See :func:`release`; this one is for async code.
        """
        unit = self._current("arelease()")
        for out in unit.borrows():
            self._released(unit, out)  # first: cancelled from here on, it is no leak
            result = out.lender.take_back(out.thing, out.awaits)
            if out.awaits:
                await shielded(_identity, result)

    def _released(self, unit: Unit, out: Borrow) -> None:
        try:
            unit.remove(out)
        except ValueError:
            pass

    def leave(self, worker: Worker) -> None:
        """One holder less. The last one closes."""
        with self._lock:
            worker.holders -= 1
            if worker.holders > 0:
                return
        worker.close()

    async def aleave(self, worker: Worker, *, held: bool = True) -> None:
        with self._lock:
            worker.holders -= held
            if worker.holders > 0:
                return
        if worker.state is CLOSING:
            await shielded(worker.closed.wait_async)
        else:
            await shielded(worker.aclose)

    def _refuse_while_closing(self, worker: Worker) -> None:
        if worker.state is CLOSING:
            raise ClosedError(f"{worker} is closing, and takes no new units")

    def _drop_dead(self) -> None:
        """A worker whose loop was closed under it serves nobody: shut its sockets, forget it."""
        worker = self._worker
        if worker.state is OPEN and worker.loop is not None and worker.loop.is_closed():
            worker.abandon()

    def after_fork(self) -> None:
        """Called in a forked child before anything else."""
        self._lock = RLock()
        unit = self.current.get()
        if unit is not None:  # of this thread; the others' threads and tasks do not run here
            unit.discard()
        self._worker.after_fork()

    # -- units ---------------------------------------------------------------------------------

    def unit(self, name: str | None = None) -> UnitBlock:
        """One piece of work: always a real, new unit, also inside another one.

        For threads, scripts, one websocket message. ``with lifeguard.unit():`` or ``async with``.
        *name* is how reports call it; without one it is the place in the code. It opens the
        worker if that is not open yet, to be closed at the end of the process.

        Example::

            with lifeguard.unit():
                lifeguard.callback(audit.flush)
                ...
        """
        return UnitBlock(self, name or "", caller())

    def worker_for_unit(self) -> Worker:
        """The worker of a unit that begins in this thread. It is opened if it is not.

        While it opens, everybody waits, but for what the opening itself calls.
        """
        worker = self._worker
        if worker.serving or worker.state is CLOSING or self._is_opening_here(worker):
            return worker
        loop = running_loop()
        if worker.state is OPENING:
            if loop is not None and loop is worker.loop:
                return worker  # a callback: it cannot wait for what its own loop does
            worker.opened.wait(self.open_timeout)
            if worker.state is OPENING:  # whoever opens it may be waiting for this unit
                return worker
        if self.home is None or loop is not None or not any(each.awaits for each in self._defined):
            return self.acquire(hold=False)
        return self.home.worker()

    async def aworker_for_unit(self) -> Worker:
        """The same for a unit that begins on an event loop."""
        worker = self._worker
        if worker.serving or worker.state is CLOSING or self._is_opening_here(worker):
            return worker
        return await shielded(self._aacquire_for_unit)

    def _is_opening_here(self, worker: Worker) -> bool:
        return worker.state is OPENING and self._opens.get()

    async def _aacquire_for_unit(self) -> Worker:
        return await self.aacquire(hold=False)

    def callback(self, func: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call *func* once, when the current unit ends; what was registered last goes first.

        It runs in the unit's own thread or loop, however the unit ends. What it raises is logged
        and reported, and changes nothing about the result. Raises :exc:`NotOpenError` outside a
        unit, :exc:`ClosedError` after its end, and :exc:`TypeError` for an async *func* in a sync
        unit.

        Example::

            lifeguard.callback(audit.flush)
        """
        self._current("callback()").callback(func, *args, **kwargs)

    def _current(self, what: str) -> Unit:
        unit = self.current.get()
        if unit is None:
            raise NotOpenError(
                f"{what} was called outside a unit, at {caller()}: call it in a request that "
                "lifeguard.wrap() guards, in a @lifeguard.task, or in `with lifeguard.unit():`"
            )
        if unit.state is CLOSED and here.job is not None:
            unit = here.job  # this code outlived its unit, and this thread's job is one
        unit.check()
        return unit

    def unit_for_borrow(self) -> Unit | None:
        """Where a borrow made right now belongs. None outside of all units."""
        unit = self.current.get()
        if unit is None or unit.state is OPEN or unit.state is CLOSING:
            return unit
        if unit.state is CLOSED:  # this code outlived its unit: what it borrows is its own
            task = current_task()
            if task is not None and self._worker.state is OPEN:
                return unit_of_task(self._worker, task)
            return here.job  # whose thread it is
        return None

    def depth(self, code: CodeType) -> int:
        """How many callers to keep of a borrow made in *code*."""
        return FULL_STACK if id(code) in self.suspects else self.stack

    # -- reports -------------------------------------------------------------------------------

    def report(self, lifetime: Lifetime, error: BaseException) -> None:
        """A clean-up went wrong. The app's own result stays as it is, so it is said here."""
        worker = isinstance(lifetime, Worker)
        logger("worker" if worker else "unit").error(
            "a clean-up of %s failed: %s",
            lifetime,
            explain(error),
            exc_info=error,
            extra={"lifeguard_lifetime": str(lifetime)},
        )
        tell(self.observers, "callback_failed", lifetime, error)

    def report_leak(self, leak: Leak) -> None:
        logger("leaks").warning(
            "%s",
            leak,
            extra={
                "lifeguard_pool": leak.pool,
                "lifeguard_unit": leak.unit,
                "lifeguard_age": leak.age,
                "lifeguard_stack": leak.stack,
            },
        )
        self.two_callers = False
        self.suspects.update((id(code), code) for code in leak.borrow.frames[::2])
        tell(self.observers, "leaked", leak.borrow)
        warn(leak)

    def __repr__(self) -> str:
        return f"<lifeguard.Lifeguard {self.key!r}, worker {self._worker.state}>"


class WorkerBlock:
    """Holds the worker open for a ``with`` or ``async with`` block. See :meth:`Guard.worker`."""

    __slots__ = ("_guard", "_resources", "_sigterm", "_worker")

    def __init__(self, guard: Guard, resources: list[Resource[Any]]) -> None:
        self._guard = guard
        self._resources = resources
        self._worker: Worker | None = None
        self._sigterm = False

    def __enter__(self) -> Worker:
        self._take_sigterm()
        try:
            self._worker = self._guard.acquire(self._resources)
        except BaseException:
            self._leave_sigterm()
            raise
        return self._worker

    def _take_sigterm(self) -> None:
        self._sigterm = self._guard.handle_sigterm and ends.take_sigterm()

    def _leave_sigterm(self) -> None:
        if self._sigterm:
            self._sigterm = False
            ends.leave_sigterm()

    def _left(self) -> Worker:
        worker, self._worker = self._worker, None
        if worker is None:
            raise LifeguardError("this block was left before it was entered")
        return worker

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        worker = self._left()
        try:
            self._guard.leave(worker)
        except Exception as error:
            if exc is None:
                raise
            self._guard.report(worker, error)
        finally:
            self._leave_sigterm()

    async def __aenter__(self) -> Worker:
        self._take_sigterm()
        try:
            self._worker = await self._guard.aacquire(self._resources)
        except BaseException:
            self._leave_sigterm()
            raise
        return self._worker

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        worker = self._left()
        try:
            await self._guard.aleave(worker)
        except Exception as error:
            if exc is None:
                raise
            self._guard.report(worker, error)
        finally:
            self._leave_sigterm()


async def _identity(awaitable: Any) -> Any:
    return await awaitable
