"""110 questions for each of five objects, put to four child processes, while the parent is in the
middle of a transaction on each of them.

``METHOD`` says how children start (fork, forkserver, spawn), ``KINDS`` which objects, ``WAYS`` who
starts them, and ``APP_BARE`` leaves lifeguard out. The ways are an executor, whose jobs are units,
and two pools, whose jobs are nothing of lifeguard's: multiprocessing's and billiard's.

Run with ``-c "from tests.forks.apps import processes; processes.main()"``: children that are
spawned would import a main module once more, under another name.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import billiard
import django
import psycopg
import sqlalchemy
from django.conf import settings
from django.db import connections
from django.db.transaction import atomic
from psycopg_pool import ConnectionPool

import lifeguard
from tests.django.databases import database
from tests.support.eventlog import EventLog

warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the subject

DSN = os.environ["APP_DSN"]
METHOD = os.environ["METHOD"]
KINDS = os.environ["KINDS"].split(",")
BARE = bool(os.environ.get("APP_BARE"))
COUNT = 110
CHILDREN = 4

log = EventLog.from_env()


class Noted(lifeguard.Observer):
    def worker_closed(self, worker: object, errors: object) -> None:
        log.write("closed", errors=str(errors))


guard = lifeguard.Lifeguard(observers=[Noted()], grace=5)

settings.configure(
    INSTALLED_APPS=[] if BARE else ["lifeguard.django"],
    DATABASES={
        "default": database(DSN, CONN_MAX_AGE=60),
        "native": database(DSN, OPTIONS={"pool": {"min_size": 1, "max_size": 2, "timeout": 60}}),
    },
    LIFEGUARD={"GUARD": f"{__name__}.guard"},
    SECRET_KEY="test",
    USE_TZ=True,
)
django.setup()

pool: Any = ConnectionPool(DSN, open=False, min_size=1, max_size=2, timeout=60)
engine = sqlalchemy.create_engine(
    sqlalchemy.URL.create("postgresql+psycopg", query={}),
    creator=lambda: psycopg.connect(DSN),
    pool_size=2,
)
connection: Any = None


@contextlib.contextmanager
def connected() -> Iterator[Any]:
    with psycopg.connect(DSN, autocommit=True) as conn:
        yield conn


resource: Any = None if BARE else guard.resource(connected)


# -- the objects ----------------------------------------------------------------------------------


@contextlib.contextmanager
def cursor_of(kind: str) -> Iterator[Callable[[str], tuple[Any, ...]]]:
    """In a transaction, a function that asks."""
    if kind == "django" or kind == "native":
        alias = "default" if kind == "django" else "native"
        with atomic(alias), connections[alias].cursor() as cursor:

            def ask(query: str) -> Any:
                cursor.execute(query)
                return cursor.fetchone()

            yield ask
    elif kind == "engine":
        with engine.connect() as conn:
            yield lambda query: conn.exec_driver_sql(query).one()
    else:
        held = pool.connection() if kind == "pool" else contextlib.nullcontext(bare_connection())
        with held as conn, conn.transaction():
            yield lambda query: conn.execute(query).fetchone()


def bare_connection() -> Any:
    return connection if BARE else resource.get()


@contextlib.contextmanager
def opened() -> Iterator[None]:
    global connection
    resources = [thing for kind, thing in (("pool", pool), ("engine", engine)) if kind in KINDS]
    if not BARE:
        with guard.worker(resources=resources):
            yield
        return
    with contextlib.ExitStack() as stack:
        if "connection" in KINDS:
            connection = stack.enter_context(connected())
        if "pool" in KINDS:
            stack.enter_context(pool)
        yield


# -- the children ---------------------------------------------------------------------------------


def start(way: str) -> None:
    """All of them are there before the first question."""
    if METHOD != "fork":  # a process that inherits nothing has to open what the parent has
        still_open.enter_context(opened())
    log.write(f"up-{way}")
    log.wait_count(f"up-{way}", CHILDREN, timeout=60)


still_open = contextlib.ExitStack()


def answer(way: str, kind: str, number: int) -> None:
    in_unit = way == "executor" or kind == "connection"  # which has no other way to a worker
    try:
        with guard.unit() if in_unit and not BARE else contextlib.nullcontext():
            with cursor_of(kind) as ask:
                got, backend = ask(f"SELECT {number}, pg_backend_pid()")
    except Exception as exc:
        log.write("failed", kind=kind, way=way, error=f"{type(exc).__name__}: {exc}")
    else:
        log.write("answer", kind=kind, way=way, right=got == number, backend=backend)


def in_executor(questions: list[Any]) -> None:
    context = multiprocessing.get_context(METHOD)
    with ProcessPoolExecutor(CHILDREN, context, start, ("executor",)) as executor:
        for future in [executor.submit(answer, "executor", *each) for each in questions]:
            future.result()


def in_pool(questions: list[Any]) -> None:
    context = multiprocessing.get_context(METHOD)
    with context.Pool(CHILDREN, start, ("pool",)) as processes:
        processes.starmap(answer, [("pool", *each) for each in questions], chunksize=5)
        processes.close()
        processes.join()


def in_billiard(questions: list[Any]) -> None:
    """As a task queue does: forked in a thread, and ended by os._exit()."""

    def run() -> None:
        processes = billiard.get_context("fork").Pool(CHILDREN, start, ("billiard",))
        processes.starmap(answer, [("billiard", *each) for each in questions], chunksize=5)
        processes.close()
        processes.join()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


WAYS: dict[str, Callable[[list[Any]], None]] = {
    "executor": in_executor,
    "pool": in_pool,
    "billiard": in_billiard,
}


def main() -> None:
    if METHOD == "forkserver":
        multiprocessing.set_forkserver_preload([__name__])
    questions = [(kind, number) for number in range(COUNT) for kind in KINDS]
    with opened():
        if "engine" in KINDS:
            with engine.connect(), engine.connect():
                pass  # so that one is idle while another is in use
        for way in os.environ["WAYS"].split(","):
            with contextlib.ExitStack() as stack:
                asks = {kind: stack.enter_context(cursor_of(kind)) for kind in KINDS}
                begun = {kind: ask(BEGIN) for kind, ask in asks.items()}
                WAYS[way](questions)
                for kind, ask in asks.items():
                    log.write("after", kind=kind, way=way, same=ask(LOOK) == begun[kind])
    for alias in connections:
        connections[alias].close()


BEGIN = "SELECT pg_backend_pid(), set_config('forks.open', 'yes', true)"
LOOK = "SELECT pg_backend_pid(), current_setting('forks.open')"  # '' after another transaction
