"""A Django process that forks, once per scenario; each writes what it found as one event.

Django can be set up once in a process, and a child that hangs is killed: so all scenarios that are
named as arguments run in one program, one after another. It is imported and not run, as its name
is the root of its URLs: ``-c "from tests.forks.apps import django_child; django_child.main()"``.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import django
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.db import connections
from django.db.transaction import atomic, on_commit
from django.http import HttpRequest, JsonResponse
from django.urls import path

import lifeguard
from tests.contract.pool import in_child
from tests.django.databases import database
from tests.incidents.driving import Exchange
from tests.support.eventlog import EventLog

warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the subject

DSN = os.environ["APP_DSN"]
BARE = bool(os.environ.get("APP_BARE"))
log = EventLog.from_env()
HAS_POOLS = django.VERSION >= (5, 1) and os.environ.get("APP_DRIVER") != "psycopg2"
POOL = {"min_size": 1, "max_size": 2, "timeout": 60}

if os.environ.get("APP_DRIVER") == "psycopg2":  # Django takes psycopg 3 where both are installed
    psycopg, sys.modules["psycopg"] = sys.modules["psycopg"], None  # type: ignore[assignment]
    importlib.import_module("django.db.backends.postgresql.base")
    sys.modules["psycopg"] = psycopg

settings.configure(
    INSTALLED_APPS=[] if BARE else ["lifeguard.django"],
    DATABASES={
        "default": database(DSN),
        "native": database(DSN, OPTIONS={"pool": POOL} if HAS_POOLS else {}),
    },
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="test",
    USE_TZ=True,
)
django.setup()
ALIASES = ("default", "native")


def query(alias: str = "default", what: str = "pg_backend_pid()") -> int:
    """The backend that answers."""
    with connections[alias].cursor() as cursor:
        cursor.execute(f"SELECT {what}")
        answer: int = cursor.fetchone()[0]
    return answer


def queries() -> list[int]:
    return [query(alias) for alias in ALIASES]


def transactions() -> list[int]:
    return [query(alias, "txid_current()") for alias in ALIASES]


@contextlib.contextmanager
def in_thread(work: Callable[[threading.Event, threading.Event], None]) -> Iterator[None]:
    """Another thread that does *work*: it says when it is ready, and is told when to go on."""
    ready, go_on = threading.Event(), threading.Event()
    thread = threading.Thread(target=work, args=(ready, go_on))
    thread.start()
    assert ready.wait(20)
    try:
        yield
    finally:
        go_on.set()
        thread.join(20)


def another_threads_transaction() -> dict[str, Any]:
    """A thread is in the middle of a transaction while this one forks."""
    seen: list[list[int]] = []
    inside: list[list[int]] = []

    def work(ready: threading.Event, go_on: threading.Event) -> None:
        with contextlib.ExitStack() as stack:
            for alias in ALIASES:
                stack.enter_context(atomic(alias))
            seen.append(queries())
            inside.append(transactions())
            ready.set()
            go_on.wait(20)
            inside.append(transactions())
            seen.append(queries())

    with in_thread(work):
        theirs = in_child(queries)
    return {
        "same": seen[0] == seen[1],
        "apart": not {*theirs} & {*seen[0]},
        "goes on": inside[0] == inside[1],
    }


def forked_by_a_thread() -> dict[str, Any]:
    """The thread that forks is the only one in the child; the main one has connections."""
    mine = queries()
    theirs: list[int] = []
    thread = threading.Thread(target=lambda: theirs.extend(in_child(queries)))
    thread.start()
    thread.join(25)
    return {"same": queries() == mine, "apart": len(theirs) > 0 and not {*theirs} & {*mine}}


def a_transaction() -> dict[str, Any]:
    """A fork in the middle of one, with something to be done when it is committed."""
    done: list[int] = []

    def child() -> Any:
        connection = connections["default"]
        was = connection.in_atomic_block
        with atomic():
            query()
        return [was, done, connection.in_atomic_block]

    with atomic():
        mine = query()
        on_commit(lambda: done.append(os.getpid()))
        theirs = in_child(child)
        same = query() == mine
    return {"same": same, "child": theirs, "done": done == [os.getpid()]}


def what_somebody_holds() -> dict[str, Any]:
    """A wrapper, a driver's connection and a cursor from before the fork."""
    held = connections["default"]
    mine = query()
    raw = held.connection
    raw.autocommit = False  # so that there is something to commit
    cursor = raw.cursor()
    cursor.execute("SELECT 1")

    def child() -> Any:
        said = []
        for use in (raw.commit, lambda: cursor.execute("SELECT 1")):
            try:
                use()
            except Exception as exc:
                said.append(f"{type(exc).__name__}: {exc}")
        with held.cursor() as own:
            own.execute("SELECT pg_backend_pid()")
            return [said, bool(raw.closed), own.fetchone()[0]]

    said, closed, theirs = in_child(child)
    raw.rollback()
    raw.autocommit = True
    return {"said": said, "closed": closed, "same": query() == mine, "apart": theirs != mine}


def asgirefs_thread() -> dict[str, Any]:
    """asgiref has one thread for what is sensitive to threads. The child does not have it."""
    mine = asyncio.run(sync_to_async(query)())
    theirs = in_child(lambda: asyncio.run(sync_to_async(query)()))
    again = asyncio.run(sync_to_async(query)())
    asyncio.run(sync_to_async(connections.close_all)())
    return {"same": again == mine, "apart": theirs != mine}


def a_lock() -> dict[str, Any]:
    """Another thread looks a connection up, which takes a lock (asgiref has done without since),
    while this one forks."""
    local = vars(connections._connections)
    lock: Any = local.get("_lock") or local.get("_thread_lock") or contextlib.nullcontext()

    def work(ready: threading.Event, go_on: threading.Event) -> None:
        with lock:
            ready.set()
            go_on.wait(20)

    mine = queries()
    pid = 0
    answer, tell = os.pipe()

    def fork() -> None:
        nonlocal pid
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            os.write(tell, json.dumps(queries()).encode())
            os._exit(0)

    # Not in_child(): what it imports must not be waited for here.
    with in_thread(work):
        fork()
        os.close(tell)
        theirs = json.loads(os.read(answer, 1000) or b"[]")
        os.close(answer)
        os.waitpid(pid, 0)
    return {"same": queries() == mine, "apart": len(theirs) > 0 and not {*theirs} & {*mine}}


def noticed_late() -> dict[str, Any]:
    """A server that forks in C tells Python nothing: the first unit notices."""
    mine = queries()
    fork, os.fork = os.fork, ctypes.PyDLL(None).fork

    def child() -> list[int]:
        with lifeguard.unit():
            return queries()

    try:
        theirs = in_child(child)
    finally:
        os.fork = fork
    return {"same": queries() == mine, "apart": not {*theirs} & {*mine}}


def view(request: HttpRequest) -> JsonResponse:
    from lifeguard.django._connections import thread

    mine = queries()

    def child() -> Any:
        both = [*queries(), asyncio.run(sync_to_async(query)())]
        with lifeguard.unit():
            return [both + queries(), thread.lane]

    lane = thread.lane
    theirs, lane_of_child = in_child(child)
    return JsonResponse(
        {
            "lanes": [lane > 0, lane_of_child],
            "apart": not {*theirs} & {*mine},
            "same": queries() == mine,
        }
    )


urlpatterns = [path("", view)]


def a_lane() -> dict[str, Any]:
    """A view forks, in a lane. Its child has none, and no thread to wait for."""
    app = lifeguard.wrap(get_asgi_application())
    request = Exchange()

    async def main() -> dict[str, Any]:
        async with lifeguard.worker():
            await request.run(app)
        await request.outgoing.get()
        found: dict[str, Any] = json.loads((await request.outgoing.get())["body"])
        return found

    return asyncio.run(main())


def short_lived() -> None:
    """A child that opens what it needs, outside of every unit."""
    base = type(connections["default"])
    close = base._close

    def noted(self: Any) -> None:
        if self.connection is not None:
            log.write("closing", alias=self.alias)
        close(self)

    base._close = noted
    queries()


def short_lived_with_a_worker() -> None:
    """It is open since the unit. At its end it closes what its units have opened."""
    with lifeguard.unit():
        query()
    short_lived()


def the_end_of_a_child() -> dict[str, Any]:
    """multiprocessing ends its children by os._exit()."""
    return ended(short_lived)


def the_end_of_a_child_with_a_worker() -> dict[str, Any]:
    """It has opened some connections outside of units."""
    return ended(short_lived_with_a_worker)


def ended(target: Callable[[], None]) -> dict[str, Any]:
    queries()
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join(60)
    closed = [event["alias"] for event in log.read("closing") if event.pid == process.pid]
    return {"closed": sorted(closed), "status": process.exitcode}


def a_parent_that_is_killed() -> dict[str, Any]:
    """Its child lives on. Do its backends?"""
    hold, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        backends = queries()
        child = os.fork()
        if child == 0:
            os.close(told)
            os.read(hold, 1)
            os._exit(0)
        log.write("orphans", backends=backends)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(hold)
    (event,) = log.read("orphans")
    log.write("look", backends=event["backends"])
    log.wait_count("looked", 1, timeout=60)
    os.close(told)
    return {}


def main() -> None:
    for name in sys.argv[1:]:
        try:
            found = globals()[name]()
        except Exception as exc:
            found = {"error": f"{type(exc).__name__}: {exc}"}
        log.write("found", scenario=name, **found)
        for connection in connections.all():
            connection.close()
    log.write("over")
