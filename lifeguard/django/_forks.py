"""Django in a forked child: what the parent had open is forgotten, never closed.

A child has copies of the sockets of Django's connections and native pools, and Django would use
them: each process then reads answers that are meant for the other, and ``close()`` in one ends the
session of both. So the child lets its copies go, and Django connects anew at its next query. A
transaction that was open is the parent's; the child begins without.

The wrappers stay what they are, in ``connections`` and wherever else somebody holds one: only what
is in them is taken out.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from asgiref.sync import SyncToAsync
from django.db import connections

from .._core import ends, fork
from .._core.lifetime import CLOSING, OPEN, OPENING
from .._core.resource import Adapter
from ..threads import LoopJob, guard_jobs
from . import _connections
from ._finish import request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._wrap import Lifeguard


class Forks:
    """What forked children, and processes that end, are told for Django."""

    def __init__(self, guard: Lifeguard) -> None:
        self.guard = guard
        self.pid = os.getpid()
        self.ends_in = 0  # the process at whose end this is called
        fork.watch(self)

    # -- fork ----------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Let the threads of native pools finish connecting."""
        if self.pid == os.getpid():
            pools = list(_native_pools().values())
            if pools:
                from .._psycopg_fork import let_connect

                for pool in pools:
                    let_connect(pool)

    def after_fork(self) -> None:
        """In a forked child: what is the parent's is forgotten."""
        if self.pid == os.getpid():  # made after the fork, of which nobody had heard yet
            return
        parent, self.pid = self.pid, os.getpid()
        # A thread that is gone may have been looking a connection up.
        for name in ("_lock", "_thread_lock"):
            lock = vars(connections._connections).get(name)
            if lock is not None:
                lock._at_fork_reinit()
        try:
            for wrapper in self._wrappers():
                _forget(wrapper, parent)
        finally:
            pools = _native_pools()
            for alias, pool in pools.items():
                _let_go(list(getattr(pool, "_pool", ())), alias, parent)
                fork.keep((pool, list(getattr(pool, "_workers", ()))))
            pools.clear()
            self._leave_lanes()

    def _wrappers(self) -> list[Any]:
        """All of the parent's: of this thread, of those that are gone, and what nobody noted."""
        found: dict[int, Any] = {}
        for entry in _connections.entries():
            found.update((id(wrapper), wrapper) for wrapper in entry.wrappers)
            entry.wrappers = []
        found.update((id(wrapper), wrapper) for wrapper in _connections.inherited)
        _connections.inherited.clear()
        here = connections.all(initialized_only=True)
        found.update((id(wrapper), wrapper) for wrapper in here)
        return list(found.values())

    def _leave_lanes(self) -> None:
        """Their threads are gone, and so is asgiref's one for all: it would be waited for."""
        _connections.thread.entry = None
        _connections.thread.lane = 0
        request.set(None)
        SyncToAsync.thread_sensitive_context.set(None)  # type: ignore[arg-type]
        executor = SyncToAsync.single_thread_executor
        if executor._threads:
            fork.keep(executor)
            SyncToAsync.single_thread_executor = ThreadPoolExecutor(max_workers=1)
            guard_jobs(self.guard, SyncToAsync.single_thread_executor, LoopJob)

    # -- the end of the process ----------------------------------------------------------------

    def opened(self) -> None:
        """A connection was opened. It is closed at the end of this process, if not before."""
        pid = os.getpid()
        if self.ends_in != pid:
            self.ends_in = pid
            ends.register(self, last=True)

    def end(self) -> None:
        """The process ends, and no worker does this: a script, a child without units."""
        if self.guard._worker.state not in (OPENING, OPEN, CLOSING):
            _connections.close_all(everything=True)

    def is_closing(self) -> bool:
        return False


def _native_pools() -> dict[str, Any]:
    base = sys.modules.get("django.db.backends.postgresql.base")
    pools: dict[str, Any] = getattr(getattr(base, "DatabaseWrapper", None), "_connection_pools", {})
    return pools


def _forget(wrapper: Any, parent: int) -> None:
    """Make *wrapper* one that has not connected yet."""
    raw = wrapper.connection
    if wrapper.vendor == "sqlite":  # no socket, and a copy of its own where it is in memory
        return
    wrapper.connection = None
    wrapper._thread_sharing_lock = Lock()
    _connections.forget_transaction(wrapper)
    wrapper.errors_occurred = False
    if raw is not None:
        _let_go([raw], wrapper.alias, parent)


def _let_go(raws: list[Any], alias: str, parent: int) -> None:
    """Let the sockets of *raws* go; whoever still holds one of them is told whose it is."""
    fork.keep(raws)
    for raw in raws:
        if hasattr(raw, "pgconn"):
            from .._psycopg_fork import sever

            sever(raw, _Database(alias), parent)
        elif hasattr(raw, "fileno") and not raw.closed:  # psycopg2
            from .._psycopg_fork import cut_off

            cut_off(raw.fileno())


class _Database(Adapter):
    """Whose an inherited connection is, for the error of whoever uses it."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.made_at = f"DATABASES[{alias!r}]"

    def __str__(self) -> str:
        return f"Django's database {self.alias!r}"
