"""Tasks that end in every way a task can, and what was opened for them, to be closed at the end.

Without lifeguard, the hooks that people use for it: ``after_return`` at the end of a task, and
``atexit`` at the end of the process.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import sys
from collections.abc import Iterator
from typing import Any

from celery import Task
from celery.exceptions import Ignore, Reject
from celery.signals import worker_process_shutdown, worker_shutdown
from psycopg import Connection
from psycopg_pool import ConnectionPool

from tests.celery.apps import BARE, celery_app, log, named, wait_at_gate

app = celery_app("ends")

_executions = itertools.count(1)
_opened_in: set[int] = set()
hog: list[bytearray] = []


def say_connected(conn: Connection[Any]) -> None:
    log.write("connected", backend=conn.info.backend_pid)


def settings() -> Iterator[str]:
    """Opened first, so it has to be closed last."""
    log.write("open", what="settings")
    _opened_in.add(os.getpid())
    yield "settings"
    log.write("close", what="settings")


def db() -> Iterator[ConnectionPool[Any]]:
    sizes: Any = {"min_size": 1, "max_size": 2, "timeout": 40}
    with ConnectionPool(named("db"), open=False, configure=say_connected, **sizes) as pool:
        log.write("open", what="db")
        yield pool
    log.write("close", what="db")


def farewell(**_: Any) -> None:
    """A project's own handler: what is open is open for it."""
    if not BARE and os.getpid() in _opened_in:
        with pool().connection() as conn:
            conn.execute("SELECT 'farewell'")
        log.write("farewell")


def late_farewell(**_: Any) -> None:
    farewell()


for signal in (worker_process_shutdown, worker_shutdown):
    signal.connect(farewell)  # before all others, and the other one after them: see the end

if BARE:
    _stack = contextlib.ExitStack()
    _opened: list[Any] = []

    def pool() -> ConnectionPool[Any]:
        if not _opened:
            _opened.append(_stack.enter_context(contextlib.contextmanager(settings)()))
            _opened.append(_stack.enter_context(contextlib.contextmanager(db)()))
            atexit.register(_stack.close)
        return _opened[1]

    def at_the_end_of_the_task(key: str, how: str) -> None:
        _current.append((key, how))

    _current: list[tuple[str, str]] = []

    def task(func: Any) -> Any:
        return func

    class Base(Task):
        def after_return(self, *args: Any, **kwargs: Any) -> None:
            key, how = _current.pop()
            log.write("callback", key=key, how=how)

else:
    import lifeguard
    import lifeguard.celery

    lifeguard.resource(settings)
    _db = lifeguard.resource(db)
    task = lifeguard.task
    pool = _db.get
    Base = Task

    def at_the_end_of_the_task(key: str, how: str) -> None:
        lifeguard.callback(log.write, "callback", key=key, how=how)


class LoudTask(Base):  # type: ignore[misc, valid-type]
    def on_success(self, *args: Any) -> None:
        raise RuntimeError("on_success failed")


def work(self: Any, how: str, name: str = "") -> Any:
    """One execution: it says that it starts and what PostgreSQL answers, and ends like that."""
    key = f"{os.getpid()}.{next(_executions)}"
    log.write("start", key=key, how=how, name=name)
    at_the_end_of_the_task(key, how)
    try:
        with pool().connection() as conn:
            row = conn.execute("SELECT %s::text", [how]).fetchone()
            assert row == (how,)
            if how == "busy in a query":
                log.write("busy", key=key)
                conn.execute("SELECT pg_sleep(120)")
        return end(self, how, name, key)
    finally:
        log.write("finally", key=key, how=how)


def end(self: Any, how: str, name: str, key: str) -> Any:
    match how:
        case "success" | "on_success raises":
            return how
        case "failure":
            raise ValueError("no such order")
        case "retry":
            if self.request.retries:
                return "retried"
            raise self.retry(countdown=0)
        case "Reject":
            raise Reject("not for me", requeue=False)
        case "Ignore":
            raise Ignore
        case "SystemExit":
            sys.exit(3)
        case "KeyboardInterrupt":
            raise KeyboardInterrupt
        case "MemoryError":
            raise MemoryError
        case "cannot be serialised":
            return object()
        case "os._exit":
            os._exit(5)
        case "busy":
            log.write("busy", key=key)
            wait_at_gate(name)
        case "hog":
            hog.append(bytearray(80_000_000))
            hog[-1][::4096] = b"x" * len(hog[-1][::4096])
        case _:
            raise AssertionError(how)
    return how


work_task = app.task(bind=True, name="work", base=Base)(task(work))
loud_task = app.task(bind=True, name="loud", base=LoudTask)(task(work))

for signal in (worker_process_shutdown, worker_shutdown):
    signal.connect(late_farewell)
