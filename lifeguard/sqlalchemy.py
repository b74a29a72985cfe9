"""SQLAlchemy: engines that are disposed of once per worker, survive forks, and know who holds a
connection.

An engine that is given to lifeguard stays what it is. The events of its pool, which are public,
say what is borrowed and given back: by an engine, a connection or a session, sync or async. A
borrow inside a unit is an exit on that unit; one outside of all units is none of our business.
"""

from __future__ import annotations

import os
import sys
import weakref
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool, SingletonThreadPool, StaticPool
from sqlalchemy.util import greenlet_spawn

from ._core import fork
from ._core.lifetime import OPEN, Call
from ._core.resource import Adapter
from ._core.shield import current_task
from ._core.unit import Borrow, Leak, callers, plumbing

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from types import CodeType, FrameType

    from sqlalchemy import Connection
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

    from ._core.guard import Guard
    from ._core.lifetime import Exit

plumbing.update(("sqlalchemy", "greenlet"))


def adapt(obj: object, guard: Guard) -> Adapter | None:
    """The adapter of an engine. None for what is not one."""
    if not isinstance(obj, (Engine, AsyncEngine)):
        return None
    engine = obj.sync_engine if isinstance(obj, AsyncEngine) else obj
    known = vars(engine).get("_lifeguard")
    if known is None:
        known = EngineAdapter(engine, guard)
        vars(engine)["_lifeguard"] = known
    known.obj = obj
    return known


class EngineAdapter(Adapter):
    """An ``Engine``, or an ``AsyncEngine`` by the sync one that is in it."""

    how = "`with engine.connect()` or `with Session(engine)`"

    def __init__(self, engine: Engine, guard: Guard) -> None:
        self.obj: Any = engine
        self.engine = engine
        self.guard = guard
        self.is_async = engine.dialect.is_async
        self.pid = os.getpid()
        self.disposals = 0
        self.made: weakref.WeakSet[Any] = weakref.WeakSet()  # the driver's connections
        # Those that are idle now. What is out is noted when it is borrowed again.
        queue = getattr(getattr(engine.pool, "_pool", None), "queue", ())
        for record in list(queue):
            self._note(record)
        event.listen(engine, "connect", self._connected)
        if not isinstance(engine.pool, (StaticPool, SingletonThreadPool)):  # which lend nothing
            event.listen(engine, "checkout", self._borrowed)
            event.listen(engine, "engine_connect", self._used_by)
            event.listen(engine, "checkin", self._returned)
            event.listen(engine, "detach", self._detached)
        fork.watch(self)

    @property
    def awaits(self) -> bool:
        return self.is_async

    @property
    def name(self) -> str:
        return self.engine.url.database or self.engine.name

    def __str__(self) -> str:
        return f"engine {self.name!r}"

    # -- opening and closing -------------------------------------------------------------------

    def open(self, awaits: bool, seconds: float) -> tuple[Any, Exit] | Awaitable[tuple[Any, Exit]]:
        """Connect once, to fail now if it cannot; the connection stays in the engine's pool."""
        if self.is_async:
            return self._aopen()
        try:
            if not self._is_connected():
                self.engine.connect().close()
        except Exception as exc:
            exc.add_note(f"{self} connects to {self._host()}")
            raise
        return self.obj, _Dispose(self, self._dispose, awaits=False)

    async def _aopen(self) -> tuple[Any, Exit]:
        try:
            if not self._is_connected():
                async with self.obj.connect():
                    pass
        except Exception as exc:
            exc.add_note(f"{self} connects to {self._host()}")
            raise
        return self.obj, _Dispose(self, self._adispose, awaits=True)

    def _is_connected(self) -> bool:
        pool = self.engine.pool
        return isinstance(pool, QueuePool) and pool.checkedin() + pool.checkedout() > 0

    def _host(self) -> str:
        url = self.engine.url
        parts = {"host": url.host, "port": url.port, "dbname": url.database, "user": url.username}
        shown = " ".join(f"{key}={value}" for key, value in parts.items() if value)
        return shown or "an address that its URL does not name"

    def _dispose(self) -> None:
        self.disposals += 1
        self.engine.dispose()

    async def _adispose(self) -> None:
        self.disposals += 1
        try:
            await self.obj.dispose()
        finally:
            self.sweep()

    def sweep(self) -> None:
        """Close what is in the pool. Needs no event loop."""
        if not self.is_async:
            self._dispose()
            return
        left = [driver for driver in self.made if not _is_closed(driver)]
        for driver in left:
            _cut(driver)
        if left:
            self.disposals += 1
            self.engine.dispose(close=False)

    def can_abandon(self) -> bool:
        return True

    # -- borrowing -----------------------------------------------------------------------------

    def _note(self, record: ConnectionPoolEntry) -> None:
        driver = record.driver_connection
        if hasattr(driver, "closed") or hasattr(driver, "is_closed"):  # not sqlite3's
            self.made.add(driver)

    def _connected(self, _: Any, record: ConnectionPoolEntry) -> None:
        self.say_inherited()
        self._note(record)

    def _borrowed(self, _: Any, record: ConnectionPoolEntry, proxy: PoolProxiedConnection) -> None:
        info: Any = record.record_info
        try:
            borrow, _ = info[_KEY]
        except KeyError:
            self._note(record)
            borrow = Borrow(self, None)
            info[_KEY] = borrow, self.disposals
        unit = self.guard.current.get()
        if unit is not None and unit.state is not OPEN:
            unit = self.guard.unit_for_borrow()
        if unit is None:
            return
        caller = _outside(sys._getframe(1))
        depth = 0 if caller is None else self.guard.depth(caller.f_code)
        borrow.frames = callers(caller, depth)
        if self.is_async:
            borrow.task = current_task()
        # Not held: what nobody else holds, SQLAlchemy gives back by itself.
        borrow.thing = weakref.ref(proxy), None
        borrow.unit = unit
        unit.append(borrow)

    def _used_by(self, conn: Connection) -> None:
        """*conn* is what people have of the connection that was just borrowed."""
        if self.guard.current.get() is None:
            return
        proxy = conn.connection
        borrow, _ = (proxy.record_info or {}).get(_KEY, (None, 0))
        if borrow is not None and borrow.unit is not None:
            borrow.thing = borrow.thing[0], weakref.ref(conn)

    def _returned(self, _: Any, record: ConnectionPoolEntry) -> None:
        borrow, disposals = (record.record_info or {}).get(_KEY, (None, self.disposals))
        if borrow is not None and borrow.unit is not None:
            try:
                borrow.unit.remove(borrow)
            except ValueError:  # it is being taken back
                pass
            borrow.unit = borrow.task = borrow.thing = None
        if disposals != self.disposals:  # it goes into a pool that is no engine's any more
            record.close()

    def _detached(self, dbapi: Any, record: ConnectionPoolEntry) -> None:
        """It leaves the pool: somebody wants it so, or it was forgotten, and is async.

        Then the garbage collector has found it, and SQLAlchemy cannot give it back from there.
        """
        borrow, _ = (record.record_info or {}).get(_KEY, (None, 0))
        leak = None
        if borrow is not None and borrow.unit is not None and borrow.thing[0]() is None:
            leak = Leak(borrow, borrow.unit)
        self._returned(dbapi, record)
        if leak is not None:
            _cut(getattr(dbapi, "driver_connection", None))
            self.guard.report_leak(leak)

    def take_back(self, thing: Any, awaits: bool) -> object:
        """Close what is out and free its place. Closed, never recycled: somebody may hold it."""
        proxy, conn = thing[0](), thing[1] and thing[1]()
        if proxy is None or not proxy.is_valid:
            return None
        # By the connection that people have, if there is one: it knows then that it is invalid,
        # and says so to whoever uses it.
        if conn is not None and not conn.closed and not conn.invalidated:
            invalidate = conn.invalidate
        else:
            invalidate = proxy.invalidate
        if not self.is_async:
            invalidate()
        elif awaits:
            return greenlet_spawn(invalidate)
        else:
            _cut(proxy.driver_connection)
        return None

    # -- fork ----------------------------------------------------------------------------------

    def after_fork(self) -> None:
        """In a forked child: let the sockets go, and begin with an empty pool."""
        if self.pid == os.getpid():  # made after the fork, of which nobody had heard yet
            return
        made = [driver for driver in self.made if not _is_closed(driver)]
        self.made = weakref.WeakSet()
        fork.keep((made, self.engine.pool))
        for driver in made:
            _let_go(driver, self)
        self.disposals += 1
        self.engine.dispose(close=False)
        if made:
            self.inherited_from = self.pid
        self.pid = os.getpid()

    def what_now(self) -> str:
        return (
            "here it connects anew. A process that only forks needs no connections: use the "
            "engine in requests, tasks and units only, or `engine.dispose()` it before the fork"
        )


_KEY = "lifeguard"  # in the record of a connection: its borrow, and the disposals before it


class _Dispose(Call):
    """Disposes of an engine, with or without its loop."""

    __slots__ = ("adapter",)

    def __init__(self, adapter: EngineAdapter, dispose: Any, *, awaits: bool) -> None:
        super().__init__(dispose, awaits=awaits)
        self.adapter = adapter

    def abandon(self) -> bool:
        if self.adapter.is_async:
            self.adapter.sweep()
            return False
        return super().abandon()

    def __str__(self) -> str:
        return f"disposal of {self.adapter}"


def _outside(frame: FrameType | None) -> FrameType | None:
    """The nearest frame that is not SQLAlchemy's: who borrows.

    Async calls run on a greenlet, which has a stack of its own; the caller's is its parent's.
    """
    found = _skip(frame)
    if found is None and (greenlet := sys.modules.get("greenlet")) is not None:
        parent = greenlet.getcurrent().parent
        if parent is not None:
            found = _skip(parent.gr_frame)
    return found


def _skip(frame: FrameType | None) -> FrameType | None:
    while frame is not None:
        code = frame.f_code
        if id(code) not in _inside:
            if frame.f_globals.get("__name__", "").partition(".")[0] not in _PASSED:
                return frame
            _inside[id(code)] = code
        frame = frame.f_back
    return None


_PASSED = ("sqlalchemy", "contextlib", "greenlet")
_inside: dict[int, CodeType] = {}  # seen to be theirs; by id, for the hash of one is dear


def _is_closed(driver: Any) -> bool:
    closed = driver.is_closed() if hasattr(driver, "is_closed") else driver.closed
    return bool(closed)


def _cut(driver: Any) -> None:
    """Close a connection of an async driver without an event loop."""
    if hasattr(driver, "pgconn"):
        driver._closed = True  # no ResourceWarning from its destructor
        driver.pgconn.finish()
    elif hasattr(driver, "terminate"):  # asyncpg's, whose transport wants a loop that runs
        try:
            driver.terminate()
        except RuntimeError:
            pass


def _let_go(driver: Any, adapter: EngineAdapter) -> None:
    if hasattr(driver, "pgconn"):
        from ._psycopg_fork import sever

        sever(driver, adapter, adapter.pid)
    elif hasattr(driver, "fileno"):  # psycopg2's
        from ._psycopg_fork import cut_off

        cut_off(driver.fileno())
