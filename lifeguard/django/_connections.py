"""Which thread has which connections, who opened them, and when they may be closed.

Django keeps a connection in a thread-local and forgets it with the thread, and what it forgets
lives on in a cycle: its socket stays until the garbage collector comes. So this module keeps an
entry per thread, which Python drops while the thread ends, in that thread; and a mark per
connection, which says whose it is. A unit cleans up what it has opened, and nothing else: not what
its caller had open, and never in the middle of a transaction.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from _thread import get_ident

from django.db.backends.base.base import NO_DB_ALIAS

from .._core.clock import now
from .._core.errors import explain
from .._core.lanes import Care
from .._core.lifetime import CLOSED, CLOSING, OPEN, Exit
from .._core.observer import logger
from .._core.unit import here
from .._loop import green

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._core.unit import Unit
    from .._wrap import Lifeguard

STALE = 60.0  #: seconds after which a connection that nobody closes is spoken of


class Entry:
    """The connections of one thread. Nothing but the thread-local keeps it alive."""

    __slots__ = ("__weakref__", "ident", "lane", "name", "pid", "wrappers")

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.ident = get_ident()
        self.name = threading.current_thread().name
        self.lane = thread.lane
        self.wrappers: list[Any] = []  # open ones, and some that were; more than one of an alias
        key = id(self)
        _entries[key] = weakref.ref(self, lambda _: _entries.pop(key, None))

    def __del__(self, is_finalizing: Any = sys.is_finalizing, getpid: Any = os.getpid) -> None:
        # In the thread that ends. No logging and no current_thread() in here: they would make a
        # dummy of a thread that is gone, and Python 3.13 complains of it at its own end.
        if is_finalizing():
            return
        if self.pid != getpid():
            # A forked child drops the locals of threads that it does not have, before any hook
            # runs. These are the parent's, and in use there.
            inherited.extend(self.wrappers)
            return
        for wrapper in self.wrappers:
            close_for_good(wrapper)


class _Thread(threading.local):
    entry: Entry | None = None
    lane = 0  #: its number, if it is one


thread = _Thread()
inherited: list[Any] = []  #: of the parent's threads that this process does not have
_entries: dict[int, weakref.ref[Entry]] = {}


def entries() -> list[Entry]:
    """Of all threads that live."""
    found = [ref() for ref in list(_entries.values())]
    return [entry for entry in found if entry is not None]


class Mark:
    """What is known of one connection: whose it is, and what would be lost with it."""

    __slots__ = ("cursors", "guard", "owner", "pooled", "said", "session", "used")

    def __init__(self, wrapper: Any, guard: Lifeguard) -> None:
        self.guard = guard
        self.owner: Unit | None = None  # the unit that opened it, or used it first after another
        self.cursors: list[weakref.ref[Any]] = []  # server-side ones that were opened
        self.session = False  # an advisory lock or a LISTEN was seen
        self.pooled = bool(wrapper.settings_dict.get("OPTIONS", {}).get("pool"))
        self.used = now()
        self.said = False

    def execute(self, execute: Any, sql: Any, params: Any, many: Any, context: Any) -> Any:
        """An execute wrapper of Django's: hears of every statement, and keeps none."""
        self.used = now()
        owner = self.owner
        if owner is not None and owner.state is CLOSED and not thread.lane:
            claim(context["connection"], self)
        # What may leave something that no transaction's end takes away. Not a regular expression,
        # which takes twenty times as long: 17 ms for an INSERT of a megabyte.
        text = (sql if type(sql) is str else str(sql)).lower()
        if "advisory_lock" in text or text.lstrip().startswith("listen"):
            self.session = True
        cursor = context["cursor"].cursor
        if getattr(cursor, "name", None):
            self.cursors.append(weakref.ref(cursor))
        return execute(sql, params, many, context)

    def opened(self) -> None:
        self.owner = None
        self.cursors.clear()
        self.session = False
        self.said = False
        self.used = now()


def opened(connection: Any, guard: Lifeguard) -> None:
    """A connection was opened in this thread."""
    if connection.allow_thread_sharing or connection.alias == NO_DB_ALIAS:
        return  # its owner shares it on purpose (tests with a live server), or is done at once
    mark: Mark | None = connection.__dict__.get(_MARK)
    if mark is None:
        mark = Mark(connection, guard)
        setattr(connection, _MARK, mark)
        # First: people's own wrappers come and go at the end of the list.
        connection.execute_wrappers.insert(0, mark.execute)
    mark.opened()
    entry = thread.entry
    if entry is None:
        entry = thread.entry = Entry()
    entry.wrappers = [other for other in entry.wrappers if other.connection is not None]
    if not any(other is connection for other in entry.wrappers):
        entry.wrappers.append(connection)
    if not thread.lane:
        claim(connection, mark)
        say_stale()


_MARK = "_lifeguard"


def claim(connection: Any, mark: Mark) -> None:
    """Note which unit has it, if any: that one cleans up."""
    mark.owner = None
    unit = _unit_here(mark.guard)
    if unit is not None:
        mark.owner = unit
        unit.push(_Tidy(connection, mark, unit))


def _unit_here(guard: Lifeguard) -> Unit | None:
    """The unit whose end comes in this thread, once what runs here now is over.

    The context's one may be a request on an event loop, or one of the thread that submitted a job.
    """
    unit = guard.current.get()
    job = here.job
    if unit is not None and (unit.awaits or unit.state is CLOSED):
        unit = None
    if job is not None and job.state is OPEN and (unit is None or unit.started <= job.started):
        return job
    if unit is not None and (unit.state is OPEN or unit.state is CLOSING):
        return unit
    return None


class _Tidy(Exit):
    """At the end of a unit: its connection is closed, if Django would close it now."""

    __slots__ = ("connection", "mark", "unit")

    awaits = False

    def __init__(self, connection: Any, mark: Mark, unit: Unit) -> None:
        self.connection = connection
        self.mark = mark
        self.unit = unit

    def run(self, awaits: bool) -> object:
        if self.mark.owner is self.unit:
            tidy(self.connection)
        return None

    def __str__(self) -> str:
        return f"clean-up of Django's connection {self.connection.alias!r}"


def tidy(connection: Any) -> None:
    """Close it if it is too old, broken, or not to be kept. Not inside of a transaction."""
    if connection.connection is None or connection.in_atomic_block:
        return
    if connection._thread_ident == get_ident():
        if green() is None:
            connection.close_if_unusable_or_obsolete()
        else:  # this greenlet ends with its task, and the next one would not find it
            connection.close()
        return
    # Of another thread, by a body that ends elsewhere than it began. Not while that one uses it.
    if is_active(connection):
        return
    connection.inc_thread_sharing()
    try:
        connection.close_if_unusable_or_obsolete()
    finally:
        connection.dec_thread_sharing()


def tidy_thread() -> None:
    """The same for all connections of this thread, but for those that are held."""
    entry = thread.entry
    if entry is not None:
        for connection in list(entry.wrappers):
            if connection.connection is not None and not holds(connection):
                connection.close_if_unusable_or_obsolete()


def clear_queries() -> None:
    """Forget the log of queries (DEBUG) of this thread's connections: a request begins."""
    entry = thread.entry
    if entry is not None:
        for connection in entry.wrappers:
            connection.queries_log.clear()


def close_for_good(connection: Any) -> None:
    """Close it whatever it is in the middle of: whoever used it is gone."""
    if connection.connection is None or connection.allow_thread_sharing:
        return
    try:
        forget_transaction(connection)
        if connection.__dict__[_MARK].pooled:
            _reset(connection.connection)
        connection.close()
    except Exception:  # the socket may be gone already
        pass


def forget_transaction(connection: Any) -> None:
    """Whoever began it is gone: the next one does not begin inside of it."""
    connection.in_atomic_block = False
    connection.closed_in_transaction = False
    connection.needs_rollback = False
    connection.savepoint_ids = []
    connection.run_on_commit = []


def _reset(raw: Any) -> None:
    """Leave nothing to whoever gets *raw* out of the pool next.

    Also no transaction, which the pool would end, and log: see ``Entry.__del__``.
    """
    try:
        raw.rollback()
        raw.autocommit = True
        raw.execute("CLOSE ALL; UNLISTEN *; SELECT pg_catalog.pg_advisory_unlock_all()")
    except Exception:
        raw.close()  # the pool makes another one


def holds(connection: Any) -> str | None:
    """What would be lost if somebody else used it now."""
    if connection.in_atomic_block:
        return "a transaction is open (atomic)"
    if connection.autocommit != connection.settings_dict["AUTOCOMMIT"]:
        return "autocommit is off" if connection.settings_dict["AUTOCOMMIT"] else "autocommit is on"
    raw = connection.connection
    pgconn = getattr(raw, "pgconn", None)
    if pgconn is not None:
        if pgconn.transaction_status in (1, 2, 3):  # active, in transaction, in a failed one
            return "a transaction is open"
    elif getattr(raw, "in_transaction", False):  # sqlite3
        return "a transaction is open"
    elif hasattr(raw, "get_transaction_status") and raw.get_transaction_status() in (1, 2, 3):
        return "a transaction is open"  # psycopg2
    mark: Mark | None = connection.__dict__.get(_MARK)
    if mark is None:
        return None
    if mark.cursors:
        mark.cursors = [ref for ref in mark.cursors if not _is_done(ref())]
        if mark.cursors:
            return "a server-side cursor is open"
    if mark.session:
        why = _session(raw)
        mark.session = why is not None
        return why
    return None


def _is_done(cursor: Any) -> bool:
    return cursor is None or bool(cursor.closed)


def is_active(connection: Any) -> bool:
    """Whether a statement of it is under way, in whatever thread."""
    pgconn = getattr(connection.connection, "pgconn", None)
    return pgconn is not None and pgconn.transaction_status == 1


def _session(raw: Any) -> str | None:
    """Ask PostgreSQL what this session has beyond transactions. Only where there was a hint."""
    try:
        with raw.cursor() as cursor:
            cursor.execute(
                "SELECT (SELECT count(*) FROM pg_catalog.pg_locks WHERE locktype = 'advisory'"
                " AND pid = pg_catalog.pg_backend_pid()),"
                " (SELECT count(*) FROM pg_catalog.pg_listening_channels())"
            )
            locks, channels = cursor.fetchone()
    except Exception:  # the connection is broken, and what it had is gone
        return None
    if locks:
        return "an advisory lock is held"
    return "it listens to notifications (LISTEN)" if channels else None


class ConnectionCare(Care):
    """What a lane knows of Django's connections in its thread."""

    def begin(self, number: int) -> None:
        thread.lane = number

    def held(self) -> str | None:
        entry = thread.entry
        if entry is not None:
            for connection in list(entry.wrappers):
                why = None
                if connection.connection is not None:
                    why = holds(connection)
                elif connection.in_atomic_block:
                    why = "a transaction is open, and its connection is closed"
                if why is not None:
                    return why
        return None

    def rest(self) -> bool:
        kept = False
        entry = thread.entry
        if entry is not None:
            for connection in list(entry.wrappers):
                if connection.connection is None:
                    continue
                if connection.__dict__[_MARK].pooled:
                    connection.close()  # which gives the pool its slot back
                elif connection.errors_occurred:
                    connection.close_if_unusable_or_obsolete()
                elif not connection.settings_dict["CONN_MAX_AGE"] and connection.close_at:
                    kept = True
        return kept

    def clean(self, *, force: bool = False) -> None:
        entry = thread.entry
        if entry is None:
            return
        for connection in list(entry.wrappers):
            if connection.connection is None:
                forget_transaction(connection)  # closed inside of it: there is nothing to end
            elif holds(connection) is None:
                connection.close_if_unusable_or_obsolete()
            elif force:
                close_for_good(connection)

    def end(self) -> None:
        entry = thread.entry
        if entry is not None:
            for connection in entry.wrappers:
                close_for_good(connection)


# -- the rest of the process ----------------------------------------------------------------------


def outside() -> list[dict[str, Any]]:
    """Live threads outside of lanes that have a connection, and how long it has been idle."""
    found = []
    for entry in entries():
        for connection in list(entry.wrappers):
            mark = connection.__dict__.get(_MARK)
            if connection.connection is not None and mark is not None and not entry.lane:
                found.append(
                    {
                        "thread": entry.name,
                        "alias": connection.alias,
                        "idle": round(max(0.0, now() - mark.used), 3),
                    }
                )
    return found


def say_stale() -> None:
    """Name threads that have a connection and do not use it. Asked when one more is opened."""
    for entry in entries():
        if entry.lane or entry.ident == get_ident():
            continue
        for connection in list(entry.wrappers):
            mark = connection.__dict__.get(_MARK)
            if connection.connection is None or mark is None or mark.said:
                continue
            age = now() - mark.used
            if age > max(STALE, connection.settings_dict["CONN_MAX_AGE"] or 0):
                mark.said = True
                logger("leaks").warning(
                    "thread %r has had a connection to database %r for %.0f s without using it, "
                    "and nothing closes it before the thread ends. Let its jobs be units: use "
                    "lifeguard.ThreadPoolExecutor, `with lifeguard.unit():`, or "
                    "LIFEGUARD['EXECUTORS'] = True.",
                    entry.name,
                    connection.alias,
                    age,
                    extra={"lifeguard_thread": entry.name, "lifeguard_alias": connection.alias},
                )


def close_all(*, everything: bool = False) -> None:
    """At the worker's end: what its units have opened in whatever thread, and the pools.

    Not what was opened outside of them: the process may go on (tests, scripts), and so does that.
    *Everything* is for the end of the process.
    """
    for entry in entries():
        for connection in list(entry.wrappers):
            if connection.connection is None:
                continue
            if connection.__dict__[_MARK].owner is None and not everything:
                continue
            if connection.in_atomic_block or connection.allow_thread_sharing:
                continue
            if is_active(connection):
                continue
            connection.inc_thread_sharing()
            try:
                connection.close()
            except Exception as exc:
                logger("worker").warning(
                    "a connection to database %r could not be closed: %s",
                    connection.alias,
                    explain(exc),
                )
            finally:
                connection.dec_thread_sharing()
    base = sys.modules.get("django.db.backends.postgresql.base")
    pools = getattr(getattr(base, "DatabaseWrapper", None), "_connection_pools", {})
    while pools:  # Django opens a new one, should anybody ask for it
        _, pool = pools.popitem()
        pool.close()
