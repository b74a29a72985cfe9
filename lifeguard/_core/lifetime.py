"""A lifetime: an exit stack that is closed exactly once.

``contextlib.ExitStack`` gives the words: ``enter``, ``callback``, ``close`` / ``aclose``. What it
lacks is the whole of this module:

* exactly once, whoever races: the one that moves OPEN to CLOSING owns the exits, nobody else
  gets any of them;
* sync and async exits on one stack, last registered first;
* every exit runs, whatever the others raise, and the errors come out together;
* a forked child discards it (see :mod:`.fork`).

What runs next is decided once, in a generator. :func:`drive` and :func:`adrive` run what it
yields, without and with an event loop, so there are no twin bodies to drift apart.

A lifetime *is* the list of its exits. That is for speed: an idle unit costs one small
allocation, and asking "is anything registered" is the truth value of a list. ``list.append`` and
``list.pop`` are atomic, so an exit is always in exactly one pair of hands.
"""

from __future__ import annotations

from _thread import allocate_lock  # not threading, which costs 2 ms more at import

from . import fork
from .clock import now
from .errors import ClosedError, WrongProcessError, summarize

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence
    from typing import Any, ParamSpec, Protocol, TypeVar

    P = ParamSpec("P")
    T = TypeVar("T")

    class Step(Protocol):
        """One thing to do."""

        def run(self, awaits: bool) -> Any:
            """Do it. With *awaits* the result may be an awaitable, which is then awaited."""

    Plan = Generator[Step, Any, T]


class State:
    """Where a lifetime stands. An object and not a string, for identity is the fastest test."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


NEW = State("not open yet")
OPENING = State("opening")
OPEN = State("open")
CLOSING = State("closing")
CLOSED = State("closed")
DISCARDED = State("inherited by a fork")

_gate = allocate_lock()  # held for the move from OPEN to CLOSING, and for nothing else


@fork.in_child
def _new_gate() -> None:
    global _gate
    _gate = allocate_lock()


class LoopIsGone(RuntimeError):
    """An exit that has to be awaited, and nothing is left to await it."""


class Exit:
    """One registered exit: something to run when the lifetime ends, exactly once."""

    __slots__ = ()

    awaits: bool  #: whether running it gives something to await

    def run(self, awaits: bool) -> object:
        """Do it. With *awaits* the result may be an awaitable, which is then awaited."""
        raise NotImplementedError

    def end(self, exc: BaseException | None) -> None:
        """Be told what the lifetime ended with. Only those that care keep it."""

    def abandon(self) -> bool:
        """Do what can be done without an event loop. True if that is all there was to do.

        Raises :exc:`LoopIsGone` if it is nothing.
        """
        if self.awaits:
            raise LoopIsGone(f"{self} could not run: its event loop is gone")
        self.run(awaits=False)
        return True


class Call(Exit):
    """An exit that calls a function."""

    __slots__ = ("args", "awaits", "func", "kwargs")

    def __init__(
        self,
        func: Callable[..., object],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
        *,
        awaits: bool | None = None,
    ) -> None:
        self.func = func
        self.args = args
        self.kwargs = {} if kwargs is None else kwargs
        self.awaits = is_async(func) if awaits is None else awaits

    def run(self, awaits: bool) -> object:
        result = self.func(*self.args, **self.kwargs)
        if not awaits and is_awaitable(result):
            discard_awaitable(result)
            raise TypeError(f"{self} gave an awaitable, and nothing here can await it")
        return result

    def __str__(self) -> str:
        return f"callback {describe(self.func)}"


class Leave(Call):
    """The exit of a context manager. It is told what the lifetime ended with, as in a ``with``."""

    __slots__ = ("exc", "manager")

    def __init__(self, manager: object, func: Callable[..., object], *, awaits: bool) -> None:
        super().__init__(func, awaits=awaits)
        self.manager = manager
        self.exc: BaseException | None = None

    def end(self, exc: BaseException | None) -> None:
        self.exc = exc

    def run(self, awaits: bool) -> object:
        exc, self.exc = self.exc, None
        if exc is None:
            self.args = (None, None, None)
        else:
            self.args = (type(exc), exc, exc.__traceback__)
        try:
            return super().run(awaits)
        finally:
            self.args = ()

    def __str__(self) -> str:
        return f"exit of {self.manager!r}"


class Lifetime(list["Exit"]):
    """An exit stack that is closed exactly once. See the module's docstring."""

    __slots__ = ("awaits", "state")

    awaits: bool  #: whether async exits can be taken: something will await them
    state: State

    __hash__ = object.__hash__  # type: ignore[assignment]  # by identity: C speed in sets

    def __init__(self, *, awaits: bool = False) -> None:
        self.awaits = awaits
        self.state = OPEN

    # -- registering ---------------------------------------------------------------------------

    def callback(self, func: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call *func* once when this ends; what was registered last is called first.

        Raises :exc:`ClosedError` if it has ended, and :exc:`TypeError` for an async *func* where
        nothing could await it.
        """
        if not callable(func):
            raise TypeError(f"callback() takes a callable, not {func!r}")
        self.push(Call(func, args, kwargs))

    def enter(self, manager: Any) -> Any:
        """Enter the context manager *manager* and leave it when this ends. Returns its value."""
        cls = type(manager)
        try:
            enter, leave = cls.__enter__, cls.__exit__
        except AttributeError:
            hint = " (it is an async one: use aenter())" if hasattr(cls, "__aenter__") else ""
            raise TypeError(f"enter() takes a context manager, not {manager!r}{hint}") from None
        self.check()
        value = enter(manager)  # enter first, register after: what was not entered has no exit
        try:
            self.push(Leave(manager, leave.__get__(manager, cls), awaits=False))
        except BaseException as exc:  # it ended meanwhile, and nobody else would leave
            leave(manager, type(exc), exc, exc.__traceback__)
            raise
        return value

    async def aenter(self, manager: Any) -> Any:
        """Enter the async context manager *manager*, leave it when this ends. Returns its value."""
        cls = type(manager)
        try:
            enter, leave = cls.__aenter__, cls.__aexit__
        except AttributeError:
            raise TypeError(f"aenter() takes an async context manager, not {manager!r}") from None
        self.check()
        if not self.awaits:
            raise TypeError(f"{self} is a sync one and cannot leave {manager!r}: {_USE_ASYNC}")
        value = await enter(manager)
        try:
            self.push(Leave(manager, leave.__get__(manager, cls), awaits=True))
        except BaseException as exc:
            await leave(manager, type(exc), exc, exc.__traceback__)
            raise
        return value

    def push(self, exit_: Exit) -> None:
        if exit_.awaits and not self.awaits:
            raise TypeError(f"{self} is a sync one and cannot await {exit_}: {_USE_ASYNC}")
        self.append(exit_)
        if self.state is not OPEN:
            self._settle(exit_)

    def _settle(self, exit_: Exit) -> None:
        """*exit_* came in late. A closer that is still at work takes it; else it goes back."""
        if self.state is CLOSING or self.state is OPENING:
            return
        try:
            self.remove(exit_)
        except ValueError:
            return  # somebody took it, and so runs it
        self.check()
        # Not open yet; or the closer looked again in this moment, and missed it by that much.
        raise ClosedError(f"{self} is {self.state}, and does not take {exit_} now")

    def check(self) -> None:
        """Raise unless this still takes exits."""
        if self.state is DISCARDED:
            raise WrongProcessError(
                f"{self} belongs to the process that this one was forked from: "
                "open one of your own here"
            )
        if self.state is CLOSED:
            raise ClosedError(
                f"{self} has ended: what outlives it needs a lifetime of its own, "
                "for example `with lifeguard.unit():`"
            )

    # -- ending --------------------------------------------------------------------------------

    def close(self, exc: BaseException | None = None) -> None:
        """End it: run every exit, last registered first. The second call does nothing.

        Raises :exc:`CloseErrors` with all that went wrong.
        """
        if self._claim():
            errors = drive(self._closing(exc))
            if errors:
                raise summarize(f"{self} ended with errors", errors)

    async def aclose(self, exc: BaseException | None = None, *, grace: float | None = None) -> None:
        """The same where there is an event loop: sync and async exits, within *grace* seconds."""
        if self._claim():
            errors = await adrive(self._closing(exc), grace=grace)
            if errors:
                raise summarize(f"{self} ended with errors", errors)

    def discard(self) -> None:
        """Forget everything and run nothing: this is a child of the process it belongs to."""
        self.state = DISCARDED
        fork.keep(list(self))
        self.clear()

    def _claim(self) -> bool:
        """Move OPEN to CLOSING. True for exactly one caller."""
        with _gate:
            if self.state is not OPEN:
                return False
            self.state = CLOSING
            return True

    def _closing(
        self, exc: BaseException | None = None, *, sync_only: bool = False
    ) -> Plan[list[BaseException]]:
        """Decide what runs, in which order; collect what it raises.

        With *sync_only* it stops before the first exit that has to be awaited, still CLOSING.
        """
        errors: list[BaseException] = []
        while True:
            while self:
                try:
                    exit_ = self.pop()
                except IndexError:  # a late one was taken back by whoever brought it
                    break
                if sync_only and exit_.awaits:
                    self.append(exit_)
                    return errors
                exit_.end(exc)
                try:
                    yield self._step(exit_)
                except BaseException as error:
                    errors.append(error)
            self.state = CLOSED
            if not self:
                return errors
            self.state = CLOSING  # one came in between the last look and the end

    def _step(self, exit_: Exit) -> Step:
        """How *exit_* is run."""
        return exit_

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}, {self.state}>"

    def __str__(self) -> str:
        return f"the {type(self).__name__.lower()}"

    __eq__ = object.__eq__
    __ne__ = object.__ne__


_USE_ASYNC = "use `async with`, or register something that is not async"


# -- the two drivers ------------------------------------------------------------------------------


def drive(plan: Plan[T]) -> T:
    """Run the steps of *plan* one by one, here and now."""
    try:
        step = next(plan)
        while True:
            try:
                result = step.run(awaits=False)
            except BaseException as exc:
                step = plan.throw(exc)
            else:
                step = plan.send(result)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        plan.close()


async def adrive(plan: Plan[T], *, grace: float | None = None, shield: bool = True) -> T:
    """Run the steps of *plan*, and await what can be awaited.

    All of them together get *grace* seconds. A step that comes late, because one before it hung,
    still gets a tenth of that: a hung exit costs its own clean-up, not everybody's.
    Without *shield* a cancellation stops it: so with opening, which nobody has to finish.
    """
    deadline = None if grace is None else now() + grace
    try:
        step = next(plan)
        while True:
            try:
                result = step.run(awaits=True)
                if is_awaitable(result):
                    seconds = None
                    own_clock = getattr(step, "bounded", False)
                    if deadline is not None and grace is not None and not own_clock:
                        seconds = max(deadline - now(), grace / 10)
                    result = await (within(seconds, result, step) if shield else result)
            except BaseException as exc:
                step = plan.throw(exc)
            else:
                step = plan.send(result)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        plan.close()


async def within(seconds: float | None, awaitable: Awaitable[T], what: object) -> T:
    """Await, cancelled by nobody but the clock: TimeoutError after *seconds* names *what*."""
    import anyio

    with anyio.CancelScope(shield=True) as scope:
        if seconds is not None:
            scope.deadline = anyio.current_time() + seconds
        return await awaitable
    raise TimeoutError(f"{what} did not end within {seconds:.3g} seconds and was cancelled")


# -- small questions ------------------------------------------------------------------------------


def is_async(func: object) -> bool:
    """Whether calling *func* gives something to await, as far as can be seen before the call."""
    if type(func) is _FUNCTION and not func.__dict__:  # nearly always: nothing is behind it
        code: Any = getattr(func, "__code__")  # noqa: B009  # the checkers disagree about it
        return bool(code.co_flags & 0x80)  # inspect.CO_COROUTINE
    func = unwrap(func)
    code = getattr(func, "__code__", None)
    if code is None:
        call = type(func).__call__ if callable(func) else None
        code = getattr(call, "__code__", None)
    if code is not None and code.co_flags & 0x80:  # inspect.CO_COROUTINE
        return True
    # The marks of inspect and asyncio are bare objects. A Mock has every attribute one asks for.
    return (
        type(getattr(func, "_is_coroutine_mark", None)) is object
        or type(getattr(func, "_is_coroutine", None)) is object
    )


_FUNCTION = type(is_async)  # types.FunctionType, without the import


def unwrap(func: Any) -> Any:
    """The function behind bound methods and partials of it."""
    for _ in range(10):  # bounded, for objects that have every attribute one asks for
        inner = getattr(func, "__func__", None) or getattr(func, "func", None)
        if inner is None or inner is func:
            break
        func = inner
    return func


def is_awaitable(value: object) -> bool:
    return value is not None and hasattr(type(value), "__await__")


def discard_awaitable(value: Any) -> None:
    """Drop a coroutine that will not run, without the warning that it was never awaited."""
    close = getattr(value, "close", None) or getattr(value, "cancel", None)
    if close is not None:
        close()


def describe(obj: object) -> str:
    """The name a person would look for: ``module.function (file.py:12)``, never arguments."""
    obj = unwrap(obj)
    if type(obj) is _FUNCTION:
        obj = unwrap(obj.__dict__.get("lifeguard_func", obj))  # not what was made of it here
    name = getattr(obj, "__qualname__", None) or type(obj).__qualname__
    module = getattr(obj, "__module__", None)
    code = getattr(obj, "__code__", None)
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    return f"{module}.{name}{where}" if module else f"{name}{where}"


def raise_fatal(errors: Sequence[BaseException]) -> None:
    """Raise the first KeyboardInterrupt or SystemExit of *errors*: nobody may swallow those."""
    for error in errors:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise error
