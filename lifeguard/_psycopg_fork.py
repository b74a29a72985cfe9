"""psycopg connections in a forked child: they are the parent's, and must not be used or closed.

Of a pool or alone. It stands apart from ``lifeguard.psycopg`` because it knows connections and no
pools: psycopg is often installed without them.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from psycopg import AsyncConnection, Connection, OperationalError

from ._core import fork
from ._core.clock import now
from ._core.errors import WrongProcessError
from ._core.resource import Adapter

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from ._core.guard import Guard
    from ._core.lifetime import Exit


def adapt(obj: object, guard: Guard) -> Adapter | None:
    """The adapter of a connection that is no pool's. None for what is not one."""
    if isinstance(obj, (Connection, AsyncConnection)) and getattr(obj, "_pool", None) is None:
        known = getattr(obj, "_lifeguard", None)
        return known if isinstance(known, ConnectionAdapter) else ConnectionAdapter(obj, guard)
    return None


class ConnectionAdapter(Adapter):
    """A connection that is held as a resource. It works in the process that made it, only."""

    def __init__(self, conn: Any, guard: Guard) -> None:
        super().__init__(conn, guard)
        self.made_in = os.getpid()
        conn._lifeguard = self
        fork.watch(self)

    @property
    def name(self) -> str:
        return "psycopg connection"

    def open(self, awaits: bool, seconds: float) -> tuple[Any, Exit] | Awaitable[tuple[Any, Exit]]:
        if self.made_in != os.getpid():
            raise refusal(self, self.made_in)
        return super().open(awaits, seconds)

    def after_fork(self) -> None:
        """Called in a forked child before anything else."""
        if not self.obj.closed:
            self.inherited_from = self.made_in
            sever(self.obj, self, self.made_in)

    def what_now(self) -> str:
        return (
            "it cannot be used here. Declare it with @lifeguard.resource: each process then makes "
            "its own"
        )


def sever(conn: Any, adapter: Adapter, pid: int) -> None:
    """Let the copy of a socket of process *pid* go. The server and that process see nothing.

    Closing would send a Terminate on the parent's connection. Pointing the descriptor at /dev/null
    frees the socket, so that a dead parent's backend ends although this child lives on. libpq's
    own memory stays as it is: a thread of the parent may have been at work in it.
    """
    try:
        socket = conn.pgconn.socket
    except OperationalError:  # closed, or no socket yet
        return
    cut_off(socket)
    cls: Any = type(conn)
    is_async = issubclass(cls, AsyncConnection)
    conn._lifeguard_owner = adapter, pid
    conn.lock = asyncio.Lock() if is_async else threading.Lock()  # it may be held by who is gone
    conn.__class__ = _inherited(cls)


def cut_off(descriptor: int) -> None:
    """Let this process's copy of a socket go, without a word to whoever is at its other end."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(null, descriptor)
    finally:
        os.close(null)


def let_connect(pool: Any) -> None:
    """Let the threads of a sync pool finish connecting, for a second at most: a fork is near.

    libpq and what is below it take locks while they connect. A child that is forked in the middle
    of that inherits them taken, and hangs at its own first connect. (A pool that is opened at
    import and forked a moment later is in the middle of it.)
    """
    deadline = now() + 1.0
    while _is_connecting(pool) and now() < deadline:
        time.sleep(0.001)


def _is_connecting(pool: Any) -> bool:
    running = sys._current_frames()  # with the GIL held, until after the fork
    for thread in getattr(pool, "_workers", ()):
        frame = running.get(getattr(thread, "ident", 0))
        while frame is not None:
            if frame.f_code.co_name == "_connect":
                return True
            frame = frame.f_back
    return False


def refusal(adapter: Adapter, pid: int) -> WrongProcessError:
    """Why a connection of process *pid* cannot be used. *adapter* is its pool's, or its own."""
    adapter.say_inherited()
    of = "" if isinstance(adapter, ConnectionAdapter) else f" of {adapter}"
    return WrongProcessError(
        f"this connection{of} (made at {adapter.made_at}) was open before the fork and belongs to "
        f"process {pid}: get one of this process, inside a request, a task or "
        "`with lifeguard.unit():`"
    )


_classes: dict[type, type] = {}


def _inherited(cls: Any) -> type:
    """The subclass of *cls* for what is not this process's: closed, and no cancel gets through."""
    if cls in _classes.values():  # of a grandparent
        return cls  # type: ignore[no-any-return]
    made = _classes.get(cls)
    if made is None:
        made = _classes[cls] = (_async if issubclass(cls, AsyncConnection) else _sync)(cls)
        made.__name__, made.__qualname__ = cls.__name__, cls.__qualname__
        made.__module__ = cls.__module__
    return made


def _closed(self: Any) -> bool:
    return True


def _refuse(self: Any) -> None:
    raise refusal(*self._lifeguard_owner)  # a cancel would hit what the parent is doing


def _sync(cls: Any) -> type:
    class Inherited(cls):  # type: ignore[misc]
        __slots__ = ()
        __doc__ = cls.__doc__
        closed = property(_closed)
        cancel = _refuse

        def wait(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return cls.wait(self, *args, **kwargs)
            except (OperationalError, OSError) as exc:  # as there is no socket
                raise refusal(*self._lifeguard_owner) from exc

        def rollback(self) -> None:
            """Nothing: what is open is the parent's, and here are only blocks to be left."""

        def cancel_safe(self, *, timeout: float = 30.0) -> None:
            _refuse(self)

        def _try_cancel(self, *, timeout: float = 5.0) -> None:
            _refuse(self)

    return Inherited


def _async(cls: Any) -> type:
    class Inherited(cls):  # type: ignore[misc]
        __slots__ = ()
        __doc__ = cls.__doc__
        closed = property(_closed)
        cancel = _refuse

        async def wait(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return await cls.wait(self, *args, **kwargs)
            except (OperationalError, OSError) as exc:
                raise refusal(*self._lifeguard_owner) from exc

        async def rollback(self) -> None:
            """Nothing: what is open is the parent's, and here are only blocks to be left."""

        async def cancel_safe(self, *, timeout: float = 30.0) -> None:
            _refuse(self)

        async def _try_cancel(self, *, timeout: float = 5.0) -> None:
            _refuse(self)

    return Inherited
