"""psycopg_pool: pools that open once per worker, survive forks and closed loops, and know who
holds a connection.

A pool that is given to lifeguard stays the object it was, of a subclass of the class it was:
``getconn`` and ``putconn`` are overridden, which every other way of borrowing goes through. A
borrow inside a unit is an exit on that unit; one outside of all units is none of our business.

Where psycopg_pool has no public way, private names are used (``_pool``, ``_closed``, ``_workers``
and those that ``_rewind`` lists): tests/test_psycopg.py checks that the installed version has
them, and without them the pool still opens and closes by its public methods.
"""

from __future__ import annotations

import asyncio
import os
import sys
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import psycopg_pool
from psycopg import OperationalError
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from ._core import ends, fork
from ._core.errors import WrongProcessError
from ._core.lifetime import CLOSED, OPEN, Call
from ._core.resource import Adapter
from ._core.shield import running_loop, shielded
from ._core.unit import FULL_STACK, Borrow, Unit, callers, plumbing
from ._net import Net
from ._psycopg_fork import let_connect, sever
from ._psycopg_net import aspread, spread

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from types import CodeType

    from ._core.guard import Guard
    from ._core.lifetime import Exit

    AnyPool = ConnectionPool[Any] | AsyncConnectionPool[Any]

_frame = sys._getframe
plumbing.add("psycopg_pool")


def adapt(obj: object, guard: Guard) -> Adapter | None:
    """The adapter of a pool. None for what is not one."""
    known = getattr(obj, "_lifeguard", None)
    if isinstance(known, PoolAdapter):
        return known
    if isinstance(obj, ConnectionPool):
        return PoolAdapter(obj, guard)
    if isinstance(obj, AsyncConnectionPool):
        return AsyncPoolAdapter(obj, guard)
    return None


class PoolAdapter(Adapter):
    """A ``ConnectionPool``, also a null one."""

    obj: Any
    is_async = False
    how = "`with pool.connection()`"

    def __init__(self, pool: AnyPool, guard: Guard) -> None:
        self.obj = pool
        self.guard = guard
        self.pid = os.getpid()
        connection = getattr(type(pool).connection, "__wrapped__", None)  # a context manager's
        self.plumbing: CodeType | None = getattr(connection, "__code__", None)
        self.made: weakref.WeakSet[Any] = weakref.WeakSet()  # connections in the pool and out
        self.net = self._new_net()
        self.obj._lifeguard = self
        self.obj._lifeguard_unit = guard.current.get
        self.obj.__class__ = _tracked(type(pool))  # from here on the pool's own threads are in it
        self.made.update(list(getattr(self.obj, "_pool", ())))  # and noted at their first borrow
        fork.watch(self)  # not by the guard: a pool that was yielded is known to nobody else
        if not self.obj.closed:  # a program that never opens a worker still ends
            ends.register(self, last=True)

    def note(self, conn: Any) -> Borrow:
        """*conn* is new in the pool."""
        borrow: Borrow
        borrow = conn._lifeguard = Borrow(self, None)  # knows its thing while it is out: no cycle
        self.made.add(conn)
        return borrow

    def _new_net(self) -> Net | None:
        overrides = getattr(self.guard, "safety_net", True)
        if overrides is False:
            return None
        return Net(self.name, overrides, getattr(self.guard, "name", None))

    def welcome(self, conn: Any) -> Borrow:
        """*conn* is borrowed for the first time. It was made before the pool was adopted."""
        try:
            spread(self.net, conn)
        except OperationalError:  # lost: its borrower is told by the first query, as ever
            pass
        except BaseException:
            _cut(conn)
            conn._pool = self.obj
            _base(self.obj).putconn(self.obj, conn)
            conn._pool = None
            raise
        return self.note(conn)

    def end(self) -> None:
        """The process ends. A sync pool that is not closed delays that by 20 s (psycopg#954)."""
        if self.pid == os.getpid() and not self.obj.closed:
            self._end()

    def _end(self) -> None:
        self._close()

    def is_closing(self) -> bool:
        return False  # where that matters, its worker is

    @property
    def awaits(self) -> bool:
        return self.is_async

    @property
    def name(self) -> str:
        return str(self.obj.name)

    # -- opening and closing -------------------------------------------------------------------

    def open(self, awaits: bool, seconds: float) -> tuple[Any, Exit] | Awaitable[tuple[Any, Exit]]:
        pool: ConnectionPool[Any] = self.obj
        if pool.closed:
            if getattr(pool, "_opened", False):  # an earlier worker of this process had it
                self._rewind()
            self._try_to_connect(seconds)
            pool.open(wait=True, timeout=seconds)
        return pool, Call(self._close, awaits=False)

    def _try_to_connect(self, seconds: float) -> None:
        """Fail now and say why. The pool would retry in the background and hide the cause."""
        pool: ConnectionPool[Any] = self.obj
        try:
            conninfo, kwargs = _value(pool.conninfo), _value(pool.kwargs)
            pool.connection_class.connect(conninfo, **_patient(conninfo, kwargs, seconds)).close()
        except Exception as exc:
            exc.add_note(f"pool {self.name!r} connects to {_host(pool)}")
            raise

    def _close(self) -> None:
        try:
            self.obj.close(timeout=self.guard.grace)
        finally:
            self.sweep()

    def sweep(self) -> None:
        """Close the connections that are still in the pool. Needs neither loop nor lock."""
        idle = getattr(self.obj, "_pool", None)
        self.obj._closed = True
        while idle:
            _cut(idle.popleft())

    def can_abandon(self) -> bool:
        return True

    # -- borrowing -----------------------------------------------------------------------------

    def take_back(self, thing: Any, awaits: bool) -> object:
        """Close what is out and free its place. Closed, never recycled: somebody may hold it."""
        if self._take(thing):
            _base(self.obj).putconn(self.obj, thing)
            thing._pool = None  # the pool accepts a closed connection twice, and grows by one
        return None

    def _take(self, conn: Any) -> bool:
        """Close *conn*, whose return is then a matter of book-keeping. False if it is not out."""
        if getattr(conn, "_pool", None) is not self.obj:
            return False
        borrow: Borrow = conn._lifeguard
        borrow.unit = _TAKEN_BACK
        borrow.thing = None
        _cut(conn)
        conn._pool = self.obj
        return True

    # -- fork ----------------------------------------------------------------------------------

    def before_fork(self) -> None:
        if not self.is_async and self.pid == os.getpid():
            let_connect(self.obj)

    def after_fork(self) -> None:
        """In a forked child: cut the sockets off here, leave the parent's alone, start anew."""
        pool: Any = self.obj
        try:
            was_open = not pool.closed
            made = {*self.made, *pool._pool}
            for conn in made:
                sever(conn, self, self.pid)
                borrow = getattr(conn, "_lifeguard", None)  # none: made while the pool was adopted
                if borrow is not None:
                    borrow.unit = _TAKEN_BACK  # whoever still has it out may return it
            self.made = weakref.WeakSet()
            fork.keep((made, list(pool._workers), pool._sched_runner, pool._waiting))
            fork.keep((getattr(pool, "_tasks", None), getattr(pool, "_sched", None)))
            self.net = self._new_net()
            self._rewind()
        except Exception as exc:
            _poison(pool, exc)
            return
        if was_open:  # and whoever opened it there expects it to be open here
            self.inherited_from = self.pid
            pool.__class__ = _reopening(type(pool))
        self.pid = os.getpid()

    def __str__(self) -> str:
        return f"pool {self.name!r}"

    def what_now(self) -> str:
        return (
            "here it opens anew. A process that only forks needs no connections: make it with "
            "open=False and pass it to lifeguard, or declare it with @lifeguard.resource"
        )

    def _rewind(self) -> None:
        """Make the pool what its constructor made it: not open yet."""
        pool: Any = self.obj
        pool._pool = deque()
        pool._waiting = deque()
        pool._workers = []
        pool._sched_runner = None
        pool._pool_full_event = None
        pool._nconns = pool._nconns_min = pool._min_size
        pool._growing = False
        pool._drained_at = 0.0
        if hasattr(pool, "_lock"):
            pool._lock = type(pool._lock)()
        pool._opened = False
        pool._closed = True


class AsyncPoolAdapter(PoolAdapter):
    """An ``AsyncConnectionPool``, also a null one."""

    is_async = True

    def open(self, awaits: bool, seconds: float) -> Awaitable[tuple[Any, Exit]]:
        return self._aopen(seconds)

    async def _aopen(self, seconds: float) -> tuple[Any, Exit]:
        pool: AsyncConnectionPool[Any] = self.obj
        if not pool.closed and _loop_of(pool) is not running_loop():
            # Its worker tasks ended with another loop. It could neither grow nor close.
            self.sweep()
        if pool.closed:
            if getattr(pool, "_opened", False):
                self._rewind()
            await self._try_to_aconnect(seconds)
            try:
                await pool.open(wait=True, timeout=seconds)
            except BaseException:  # cancelled half-way: nobody else will close it
                await shielded(pool.close)
                raise
        return pool, _CloseAsync(self)

    async def _try_to_aconnect(self, seconds: float) -> None:
        pool: AsyncConnectionPool[Any] = self.obj
        try:
            conninfo, kwargs = await _avalue(pool.conninfo), await _avalue(pool.kwargs)
            conn = await pool.connection_class.connect(
                conninfo, **_patient(conninfo, kwargs, seconds)
            )
        except Exception as exc:
            exc.add_note(f"pool {self.name!r} connects to {_host(pool)}")
            raise
        await conn.close()

    async def awelcome(self, conn: Any) -> Borrow:
        try:
            await aspread(self.net, conn)
        except OperationalError:
            pass
        except BaseException:  # cancelled, say
            _cut(conn)
            conn._pool = self.obj
            await shielded(self._put, conn)
            raise
        return self.note(conn)

    def take_back(self, thing: Any, awaits: bool) -> object:
        if not self._take(thing):
            return None
        if awaits:
            return self._put(thing)
        loop = _loop_of(self.obj)
        if loop is not None and loop.is_running():  # the connection is shut; its place follows
            loop.call_soon_threadsafe(loop.create_task, self._put(thing))
        return None

    async def _put(self, conn: Any) -> None:
        await _base(self.obj).putconn(self.obj, conn)
        conn._pool = None

    def _end(self) -> None:
        self.sweep()

    async def _aclose(self) -> None:
        await self.obj.close(timeout=self.guard.grace)  # the tracked one, which sweeps


class _CloseAsync(Call):
    """Closes an async pool, with or without its loop."""

    __slots__ = ("adapter",)

    def __init__(self, adapter: AsyncPoolAdapter) -> None:
        super().__init__(adapter._aclose, awaits=True)
        self.adapter = adapter

    def abandon(self) -> bool:
        self.adapter.sweep()
        return False

    def __str__(self) -> str:
        return f"close of pool {self.adapter.name!r}"


# -- the tracked classes --------------------------------------------------------------------------


_classes: dict[type, type] = {}


def _base(pool: Any) -> Any:
    """The class that *pool* was of, with the original ``putconn``."""
    return type(pool).__base__


def _tracked(cls: type) -> type:
    """The subclass of *cls* that notes borrows. One per class, and not twice."""
    if cls in _classes.values():
        return cls
    tracked = _classes.get(cls)
    if tracked is None:
        make = _make_async if issubclass(cls, AsyncConnectionPool) else _make_sync
        tracked = _classes[cls] = make(cls)
        tracked.__module__, tracked.__qualname__ = cls.__module__, cls.__qualname__
    return tracked


def _make_sync(cls: Any) -> type:
    base_getconn, base_putconn, base_connect = cls.getconn, cls.putconn, cls._connect

    class Tracked(cls):  # type: ignore[misc]
        __doc__ = cls.__doc__
        __slots__ = ()

        def getconn(self, timeout: float | None = None) -> Any:
            conn = base_getconn(self, timeout)
            try:
                borrow = conn._lifeguard
            except AttributeError:
                borrow = self._lifeguard.welcome(conn)
            unit = self._lifeguard_unit()
            if unit is not None:
                _lend(self._lifeguard, unit, conn, borrow)
            return conn

        def putconn(self, conn: Any) -> None:
            try:
                borrow = conn._lifeguard
            except AttributeError:  # it was out when the pool was adopted, or is not of this pool
                borrow = _NOT_NOTED
            unit = borrow.unit
            if unit is not None:
                try:
                    unit.remove(borrow)
                except ValueError:  # taken back before, or just now: it is the unit's
                    if unit is _TAKEN_BACK:
                        borrow.unit = None
                    return
                borrow.unit = None
                borrow.thing = None
            base_putconn(self, conn)

        def _connect(self, timeout: float | None = None) -> Any:
            conn = base_connect(self, timeout)
            try:
                spread(self._lifeguard.net, conn)
            except BaseException:  # lost, or interrupted: the pool tries again, and counts right
                _cut(conn)
                raise
            self._lifeguard.note(conn)
            return conn

    Tracked.__name__ = cls.__name__
    return Tracked


def _make_async(cls: Any) -> type:
    base_getconn, base_putconn, base_connect = cls.getconn, cls.putconn, cls._connect
    base_close = cls.close

    class Tracked(cls):  # type: ignore[misc]
        __doc__ = cls.__doc__
        __slots__ = ()

        async def getconn(self, timeout: float | None = None) -> Any:
            conn = await base_getconn(self, timeout)
            try:
                borrow = conn._lifeguard
            except AttributeError:
                borrow = await self._lifeguard.awelcome(conn)
            unit = self._lifeguard_unit()
            if unit is not None:
                _lend(self._lifeguard, unit, conn, borrow)
            return conn

        async def putconn(self, conn: Any) -> None:
            try:
                borrow = conn._lifeguard
            except AttributeError:  # it was out when the pool was adopted, or is not of this pool
                borrow = _NOT_NOTED
            unit = borrow.unit
            if unit is not None:
                try:
                    unit.remove(borrow)
                except ValueError:  # taken back before, or just now: it is the unit's
                    if unit is _TAKEN_BACK:
                        borrow.unit = None
                    return
                borrow.unit = None
                borrow.task = None  # or it would live until the next borrow
                borrow.thing = None
                if self._lock.locked() or self._waiting:
                    # A cancellation while it waits, for the lock or for the lock of somebody who
                    # waits for a connection, would lose the place for good.
                    await shielded(base_putconn, self, conn)
                    return
            await base_putconn(self, conn)

        async def close(self, timeout: float = 5.0) -> None:
            # A close that is cancelled, or comes when the tasks of the pool are gone, leaves
            # connections open, and a second one does nothing.
            idle = list(self._pool)  # it takes them out of the pool before it waits for its tasks
            try:
                await base_close(self, timeout)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # Not we were cancelled, but the pool's own tasks, with all others of their loop.
            finally:
                for conn in idle:
                    if conn._pool is None and not conn.closed:  # else somebody has borrowed it
                        _cut(conn)
                self._lifeguard.sweep()

        async def _connect(self, timeout: float | None = None) -> Any:
            conn = await base_connect(self, timeout)
            try:
                await aspread(self._lifeguard.net, conn)
            except BaseException:
                _cut(conn)
                raise
            self._lifeguard.note(conn)
            return conn

    Tracked.__name__ = cls.__name__
    return Tracked


def _reopening(cls: Any) -> type:
    """The subclass of a tracked class that opens itself at its first use, and becomes *cls*.

    Becomes it when it is open, not before: another thread may be at its first use as well.
    """
    made = _reopening_async(cls) if issubclass(cls, AsyncConnectionPool) else _reopening_sync(cls)
    made.__name__, made.__qualname__ = cls.__name__, cls.__qualname__
    made.__module__ = cls.__module__
    return made


def _reopening_sync(cls: Any) -> type:
    class Reopening(cls):  # type: ignore[misc]
        __slots__ = ()

        def open(self, wait: bool = False, timeout: float = 30.0) -> None:
            self._lifeguard.say_inherited()
            cls.open(self, wait, timeout)
            self.__class__ = cls
            ends.register(self._lifeguard, last=True)

        def getconn(self, timeout: float | None = None) -> Any:
            self.open()
            conn = cls.getconn(self, timeout)
            conn._lifeguard.frames = callers(_frame(1), FULL_STACK)  # not this frame
            return conn

    return Reopening


def _reopening_async(cls: Any) -> type:
    class Reopening(cls):  # type: ignore[misc]
        __slots__ = ()

        async def open(self, wait: bool = False, timeout: float = 30.0) -> None:
            self._lifeguard.say_inherited()
            await cls.open(self, wait, timeout)
            self.__class__ = cls
            ends.register(self._lifeguard, last=True)

        async def getconn(self, timeout: float | None = None) -> Any:
            await self.open()
            conn = await cls.getconn(self, timeout)
            conn._lifeguard.frames = callers(_frame(1), FULL_STACK)
            return conn

    return Reopening


_NOT_NOTED = Borrow(None, None)  # type: ignore[arg-type]


def _lend(adapter: PoolAdapter, unit: Unit, conn: Any, borrow: Borrow) -> None:
    """Note that *conn* is out in *unit*, and who asked for it. On the hot path of every borrow."""
    guard = adapter.guard
    frame: Any = _frame(2)
    code = frame.f_code
    if code is adapter.plumbing:
        # `with pool.connection()`: the caller is two frames further out. (Asked for by number, the
        # frames between are not made into objects.) It gives back by itself, nearly always, so
        # that its own line is enough.
        frame = _frame(4)
        borrow.frames = (
            (frame.f_code, frame.f_lasti)
            if guard.two_callers
            else callers(frame, guard.depth(frame.f_code))
        )
    elif guard.two_callers and (outer := frame.f_back) is not None:
        borrow.frames = (code, frame.f_lasti, outer.f_code, outer.f_lasti)
    else:
        borrow.frames = callers(frame, guard.depth(code))
    if adapter.is_async:
        borrow.task = _current_task(unit.worker.loop)
    if unit.state is not OPEN:
        outlived = guard.unit_for_borrow()
        if outlived is None:
            return
        unit = outlived
    borrow.thing = conn
    borrow.unit = unit
    unit.append(borrow)


if sys.version_info >= (3, 12):

    def _current_task(loop: asyncio.AbstractEventLoop | None) -> asyncio.Task[Any] | None:
        try:
            return asyncio.current_task()
        except RuntimeError:  # no loop runs: somebody steps the coroutine by hand
            return None
else:
    # There asking for the running loop asks the system for the pid, which costs 0.2 microseconds.
    _current_task = asyncio.tasks._current_tasks.get  # type: ignore[attr-defined]


#: The unit of what was taken back. Whoever still holds it may return it: nothing happens.
_TAKEN_BACK = Unit()
_TAKEN_BACK.state = CLOSED


# -- small questions ------------------------------------------------------------------------------


def _cut(conn: Any) -> None:
    """Close a connection without an event loop: Terminate is sent, the socket shut."""
    conn._pool = None  # or close() would give it back to the pool
    conn._closed = True  # no ResourceWarning from its destructor: it is closed
    conn.pgconn.finish()


def _poison(pool: Any, cause: Exception) -> None:
    """Where the pool cannot be made anew, using it raises at once, instead of sharing sockets."""

    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise WrongProcessError(
            f"pool {self.name!r} was opened before the fork, and this version of psycopg_pool "
            f"({psycopg_pool.__version__}) cannot be opened anew in the child: make it with "
            "open=False, or declare it with @lifeguard.resource"
        ) from cause

    pool.__class__ = type(
        type(pool).__name__,
        (type(pool),),
        {"getconn": refuse, "connection": refuse, "open": refuse, "__slots__": ()},
    )


def _value(setting: Any) -> Any:
    setting = setting() if callable(setting) else setting
    return setting or {} if not isinstance(setting, str) else setting


async def _avalue(setting: Any) -> Any:
    setting = setting() if callable(setting) else setting
    if hasattr(setting, "__await__"):
        setting = await setting
    return setting or {} if not isinstance(setting, str) else setting


def _patient(conninfo: Any, kwargs: Any, seconds: float) -> dict[str, Any]:
    """*kwargs* with a limit of *seconds* for a server that never answers, unless one is set."""
    from psycopg.conninfo import conninfo_to_dict

    kwargs = kwargs or {}
    if "connect_timeout" in kwargs or "connect_timeout" in conninfo_to_dict(conninfo or ""):
        return dict(kwargs)
    return {**kwargs, "connect_timeout": max(2, round(seconds))}  # libpq knows no less than 2


def _host(pool: Any) -> str:
    """Where a pool connects to, without secrets."""
    if callable(pool.conninfo):
        return "an address made by a function"
    from psycopg.conninfo import conninfo_to_dict

    shown = ("host", "hostaddr", "port", "dbname", "user")
    try:
        known = conninfo_to_dict(pool.conninfo)
    except Exception:
        return "an address that cannot be read"
    if isinstance(pool.kwargs, dict):  # among settings that are none of libpq's
        known.update({key: pool.kwargs[key] for key in shown if key in pool.kwargs})
    parts = [f"{key}={known[key]}" for key in shown if known.get(key)]
    return " ".join(parts) or "the default address of libpq"


def _loop_of(pool: Any) -> Any:
    """The loop an open async pool works on, or the running one where that cannot be told."""
    for task in getattr(pool, "_workers", ()):
        get_loop = getattr(task, "get_loop", None)
        if get_loop is not None and not task.done():
            return get_loop()
    return None if getattr(pool, "_workers", None) else running_loop()
