"""A resource: something that is opened once per worker and closed once at its end.

Its definition is inert: it is made at import, and nothing happens then. The same definition
serves one worker after another (a forked child, the next lifespan of a test client).
"""

from __future__ import annotations

import os
import sys

from .errors import LifeguardError, NotOpenError, WrongProcessError, redact
from .lifetime import DISCARDED, Call, LoopIsGone, describe, is_awaitable, unwrap
from .observer import logger
from .shield import Keeper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable
    from types import FrameType
    from typing import Any, Generic, TypeVar

    from .guard import Guard
    from .lifetime import Exit

    T_co = TypeVar("T_co", covariant=True)

    class _Generic(Generic[T_co]): ...
else:
    T_co = None

    class _Generic:
        __slots__ = ()

        # typing.Generic would cost 5 ms at import, and does no more than this at run time
        def __class_getitem__(cls, item):
            return cls


class Adapter:
    """What lifeguard knows of one object that opens and closes. A pool module subclasses it.

    This one knows what Python knows: context managers, and ``open`` / ``close`` by name. A pool's
    own adapter adds borrow events, a close that survives anything, and life after a fork.
    """

    made_at = "unknown place"  #: in the code, for messages
    inherited_from = 0  #: the process that had it open when this one was forked from it

    def __init__(self, obj: Any, guard: Guard) -> None:
        self.obj = obj
        self.guard = guard
        cls = type(obj)
        self._enters = hasattr(cls, "__enter__") and hasattr(cls, "__exit__")
        self._aenters = hasattr(cls, "__aenter__") and hasattr(cls, "__aexit__")
        opens = callable(getattr(obj, "open", None))
        closes = callable(getattr(obj, "close", None)) or callable(getattr(obj, "aclose", None))
        if isinstance(obj, type) or not (self._enters or self._aenters or (opens and closes)):
            raise TypeError(
                f"{redact(repr(obj))} is not a resource: pass an object with open() and close(), "
                "or a context manager, or declare it with @lifeguard.resource"
            )

    @property
    def awaits(self) -> bool:
        """Whether it can only be opened and closed where there is an event loop."""
        return self._aenters and not self._enters

    @property
    def name(self) -> str:
        return getattr(self.obj, "name", None) or type(self.obj).__name__

    def open(self, awaits: bool, seconds: float) -> tuple[Any, Exit] | Awaitable[tuple[Any, Exit]]:
        """Open it. Returns what people use, and the exit that closes it."""
        self.say_inherited()
        if awaits and self._aenters:
            return _keep(self.name, _stay_in(self.obj), self)
        if self._enters:
            value = self.obj.__enter__()
            return value, Call(self.obj.__exit__, (None, None, None), awaits=False)
        result = self.obj.open()
        close = getattr(self.obj, "aclose", None) if awaits else None
        exit_ = Call(close or self.obj.close, awaits=awaits)
        if not is_awaitable(result):
            return self.obj, exit_
        if not awaits:
            result.close()
            raise TypeError(f"{self.obj!r} opens asynchronously: {USE_ASYNC_WORKER}")

        async def opened() -> tuple[Any, Exit]:
            await result
            return self.obj, exit_

        return opened()

    def sweep(self) -> None:
        """Close what a close that was cut short left open. Must work without an event loop."""

    def can_abandon(self) -> bool:
        """Whether :meth:`sweep` alone closes it, where the event loop is gone."""
        return False

    def say_inherited(self) -> None:
        """Say that the parent had it open, once: before its first use in a forked child.

        Not in the fork itself, where a thread that is gone may hold the locks of logging.
        """
        pid = self.__dict__.pop("inherited_from", 0)  # whoever gets it says it
        if pid:
            logger("worker").warning(
                "%s (made at %s) was open in process %d when this process, %d, was forked from "
                "it: %s.",
                self,
                self.made_at,
                pid,
                os.getpid(),
                self.what_now(),
                extra={"lifeguard_inherited_from": pid, "lifeguard_made": self.made_at},
            )

    def __str__(self) -> str:
        return self.name

    def what_now(self) -> str:
        """What that means here, and what to do about it."""
        return (
            "what it holds is now in both, and lifeguard does not know how to make it anew. "
            "Declare it with @lifeguard.resource: each process then makes its own"
        )


class _LeaveKeeper(Call):
    """Tells a keeper to leave, and looks after what the keeper held."""

    __slots__ = ("adapter", "keeper")

    def __init__(self, keeper: Keeper, adapter: Adapter | None) -> None:
        super().__init__(self._leave, awaits=True)
        self.keeper = keeper
        self.adapter = adapter

    async def _leave(self) -> None:
        try:
            await self.keeper.close()
        finally:
            if self.adapter is not None:
                self.adapter.sweep()

    def abandon(self) -> bool:
        if self.keeper.is_done:
            return True
        if self.adapter is None or not self.adapter.can_abandon():
            raise LoopIsGone(f"{self} could not run: its event loop is gone")
        self.adapter.sweep()
        return False

    def __str__(self) -> str:
        return f"exit of resource {self.keeper.name!r}"


async def _keep(
    name: str, main: Callable[[Keeper], Coroutine[Any, Any, None]], adapter: Adapter | None
) -> tuple[Any, Exit]:
    keeper = Keeper(main, name)
    keeper.on_cancel = _wait_for_turn
    value = await keeper.open()
    return value, _LeaveKeeper(keeper, adapter)


def _wait_for_turn() -> None:
    """Every task of the loop was cancelled: the worker notices too, and closes in order."""


def _leave(manager: Any, adapter: Adapter | None) -> None:
    try:
        manager.__exit__(None, None, None)
    finally:
        if adapter is not None:
            adapter.sweep()


def _stay_in(manager: Any) -> Callable[[Keeper], Coroutine[Any, Any, None]]:
    async def main(keeper: Keeper) -> None:
        async with manager as value:
            keeper.ready(value)
            await keeper.told()

    return main


USE_ASYNC_WORKER = (
    "open it where there is an event loop: `async with lifeguard.worker():`, "
    "or an async app under lifeguard.wrap(); a sync worker takes sync resources only"
)

#: The top-level package a type comes from, and the module whose ``adapt(obj, guard)`` knows it.
adapters: dict[str, str] = {}


def find_adapter(obj: object, guard: Guard, made: str = "") -> Adapter | None:
    """The adapter that knows *obj*, made at *made*, better than :class:`Adapter`, or None."""
    for cls in type(obj).__mro__:
        module = adapters.get(cls.__module__.partition(".")[0])
        if module is not None:
            __import__(module)
            adapter: Adapter | None = sys.modules[module].adapt(obj, guard)
            if adapter is not None:
                adapter.made_at = made or adapter.made_at
                return adapter
    return None


class Resource(_Generic[T_co]):
    """Opened once per worker, closed once at its end. Made by ``@lifeguard.resource``.

    ``get()`` gives what it yielded::

        @lifeguard.resource
        async def db():
            async with AsyncConnectionPool(DSN, open=False) as pool:
                yield pool

        async with db.get().connection() as conn: ...
    """

    __slots__ = ("__weakref__", "_adapter", "_guard", "_kind", "_source", "made", "name")

    def __init__(
        self, source: Any, *, guard: Guard, name: str | None = None, made: str | None = None
    ) -> None:
        self._guard = guard
        self._source = source
        self._adapter: Adapter | None = None
        self._kind = _kind_of(source)
        if self._kind == _OBJECT:
            self._adapter = find_adapter(source, guard) or Adapter(source, guard)
            self.name = name or self._adapter.name
            self.made = self._adapter.made_at = made or "unknown place"
        else:
            self.name = name or str(getattr(source, "__name__", type(source).__name__))
            self.made = made or _made_at(source)

    # -- what people use -----------------------------------------------------------------------

    def get(self) -> T_co:
        """What the resource yielded in this worker.

        Raises :exc:`NotOpenError` where no worker is open, and :exc:`WrongProcessError` in a
        forked child that has not opened its own yet.
        """
        try:
            return self._guard._worker.values[self]  # type: ignore[no-any-return]
        except KeyError:
            raise self._not_open() from None

    def __repr__(self) -> str:
        return f"<lifeguard.Resource {self.name!r} made at {self.made}>"

    def __str__(self) -> str:
        return f"resource {self.name!r} (made at {self.made})"

    def _not_open(self) -> LifeguardError:
        worker = self._guard._worker
        if worker.state is DISCARDED:
            return WrongProcessError(
                f"{self} was opened before the fork and belongs to process {worker.pid}: use it "
                "inside a request, a task or `with lifeguard.worker():`, where this process opens "
                "its own"
            )
        return NotOpenError(
            f"{self} is not open: the worker is {worker.state}. Use it inside a request or a task, "
            "or open the worker around your code: `with lifeguard.worker():` "
            "(`async with` where resources are async)"
        )

    # -- what the worker uses ------------------------------------------------------------------

    @property
    def awaits(self) -> bool:
        """Whether it can only be opened where there is an event loop."""
        if self._adapter is not None:
            return self._adapter.awaits
        return self._kind in (_ASYNC_GENERATOR, _ASYNC_MANAGER)

    def open(self, awaits: bool) -> tuple[Any, Exit] | Awaitable[tuple[Any, Exit]]:
        """Open it. Returns the value and the exit that closes it, now or awaitably."""
        if self._adapter is not None:
            return self._adapter.open(awaits, self._guard.open_timeout)
        if self._kind == _GENERATOR:
            return self._open_generator()
        if self._kind == _ASYNC_GENERATOR:
            return self._adopting(_keep(self.name, self._stay_in_generator, None))
        manager = self._source()
        if awaits and hasattr(type(manager), "__aenter__"):
            return self._adopting(_keep(self.name, _stay_in(manager), None))
        if hasattr(type(manager), "__enter__"):
            value = manager.__enter__()
            adapter = find_adapter(value, self._guard, self.made)
            return value, Call(_leave, (manager, adapter), awaits=False)
        if hasattr(type(manager), "__aenter__"):
            raise TypeError(f"{self} is async: {USE_ASYNC_WORKER}")
        raise TypeError(
            f"{self} returned {type(manager).__qualname__}, which is not a context manager: "
            "`yield` the value instead of returning it"
        )

    async def _adopting(self, opening: Coroutine[Any, Any, tuple[Any, Exit]]) -> tuple[Any, Exit]:
        value, exit_ = await opening
        adapter = find_adapter(value, self._guard, self.made)
        if adapter is not None and isinstance(exit_, _LeaveKeeper):
            exit_.adapter = adapter
        return value, exit_

    def _open_generator(self) -> tuple[Any, Exit]:
        generator = self._source()
        try:
            value = next(generator)
        except StopIteration:
            raise self._never_yielded() from None
        adapter = find_adapter(value, self._guard, self.made)
        return value, Call(self._close_generator, (generator, adapter), awaits=False)

    def _close_generator(self, generator: Any, adapter: Adapter | None) -> None:
        try:
            next(generator)
        except StopIteration:
            return
        finally:
            if adapter is not None:
                adapter.sweep()
        generator.close()
        raise self._yielded_twice()

    async def _stay_in_generator(self, keeper: Keeper) -> None:
        generator = self._source()
        try:
            value = await anext(generator)
        except StopAsyncIteration:
            raise self._never_yielded() from None
        keeper.ready(value)
        try:
            await keeper.told()
        except BaseException as exc:  # cancelled: as in a `with` block
            await generator.athrow(exc)
            raise
        try:
            await anext(generator)
        except StopAsyncIteration:
            return
        await generator.aclose()
        raise self._yielded_twice()

    def _never_yielded(self) -> LifeguardError:
        return LifeguardError(f"{self} ended without a yield: `yield` the opened value once")

    def _yielded_twice(self) -> LifeguardError:
        return LifeguardError(
            f"{self} yielded twice: `yield` once; what follows the yield closes the resource"
        )

    def inherit(self, pid: int) -> None:
        """This is a forked child of process *pid*, which has it open."""
        if type(self._adapter) is Adapter:  # the others are told by themselves
            self._adapter.inherited_from = pid


_OBJECT, _GENERATOR, _ASYNC_GENERATOR, _MANAGER, _ASYNC_MANAGER = range(5)


def _kind_of(source: Any) -> int:
    wrapped = getattr(source, "__wrapped__", None)  # contextlib.contextmanager leaves it
    code = getattr(unwrap(source), "__code__", None)
    if code is None or isinstance(source, type):
        return _OBJECT
    if code.co_flags & 0x20:  # inspect.CO_GENERATOR
        return _GENERATOR
    if code.co_flags & 0x200:  # inspect.CO_ASYNC_GENERATOR
        return _ASYNC_GENERATOR
    inner_code = getattr(wrapped, "__code__", None)
    if inner_code is not None and inner_code.co_flags & 0x200:
        return _ASYNC_MANAGER
    return _MANAGER


def check_definition(source: Any) -> None:
    """Raise TypeError for what ``@lifeguard.resource`` cannot open, and say what it can."""
    example = "decorate a generator function that yields the opened value once"
    if source is None or isinstance(source, (str, bytes, int, type)) or hasattr(source, "send"):
        raise TypeError(f"@lifeguard.resource cannot open {redact(repr(source))}: {example}")
    if isinstance(source, Resource):
        raise TypeError(f"{source} is a resource already: decorate it once")
    code = getattr(source, "__code__", None)
    if code is not None and code.co_flags & 0x80:
        raise TypeError(f"{describe(source)} is a coroutine function and yields nothing: {example}")


def _made_at(source: Any) -> str:
    code = unwrap(getattr(source, "__wrapped__", source)).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def caller(package: str = "lifeguard") -> str:
    """``file:line`` of the nearest frame that is not this package's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame = frame.f_back
    if frame is None:
        return "unknown place"
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def unique(resources: Iterable[Resource[Any]]) -> list[Resource[Any]]:
    return list(dict.fromkeys(resources))


__all__ = ["Adapter", "Resource", "adapters", "caller", "check_definition", "find_adapter"]
