"""Small scenes at the edges of the adapter, each played in a process of its own.

``python -m tests.django.edges.program <scene>`` prints what came of it as JSON. The database is
DATABASE (JSON, as in ``settings.DATABASES``).
"""

# ruff: noqa: E402 - settings first, as in every program of Django's
from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from django.conf import settings

DATABASE = json.loads(os.environ["DATABASE"])
POOL = {"min_size": 1, "max_size": 1, "timeout": 5}

scene = sys.argv[1]
if scene.startswith("pool"):
    DATABASE["OPTIONS"] = {**DATABASE.get("OPTIONS", {}), "pool": POOL}

settings.configure(
    SECRET_KEY=os.urandom(16).hex(),
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["lifeguard.django"],
    LIFEGUARD={"LANES": 2, "NAME": f"edges-{os.getpid()}"},
    DATABASES={"default": DATABASE},
)

import django

django.setup()

from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application
from django.core.signals import request_finished
from django.core.wsgi import get_wsgi_application
from django.db import connection, connections, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path

import lifeguard
from lifeguard.django._connections import ConnectionCare, thread


def backend() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def backends() -> int:
    """How many PostgreSQL knows of this program, asked by somebody else."""
    import psycopg

    with psycopg.connect(os.environ["WITNESS"]) as witness:
        found = witness.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE %s",
            [f"edges-{os.getpid()}@%"],
        ).fetchone()
    assert found is not None
    return int(found[0])


tabs: list[asyncio.Event] = []


async def tab(request: HttpRequest) -> StreamingHttpResponse:
    """One query, and then it stays open."""

    async def rows() -> Any:
        yield str(await sync_to_async(backend)())
        closed = asyncio.Event()
        tabs.append(closed)
        await closed.wait()

    return StreamingHttpResponse(rows())


async def cancelled(request: HttpRequest) -> HttpResponse:
    await sync_to_async(backend)()
    raise asyncio.CancelledError


used: list[int] = []


def stream(request: HttpRequest) -> StreamingHttpResponse:
    """A query for each chunk."""

    def rows() -> Iterator[str]:
        for _ in range(3):
            used.append(backend())
            yield "row"

    return StreamingHttpResponse(rows())


urlpatterns = [path(view.__name__, view) for view in (tab, cancelled, stream)]


async def ask(app: Any, name: str, sent: list[Any]) -> None:
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": f"/{name}",
        "raw_path": f"/{name}".encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("localhost", 80),
    }
    messages = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)


async def until(true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come true in time")


async def pool_of_one() -> Any:
    """Two tabs and one slot: a tab that waits has none."""
    app = lifeguard.wrap(get_asgi_application())
    async with lifeguard.worker():
        answers: list[list[Any]] = [[], []]
        tasks = []
        for sent in answers:
            tasks.append(asyncio.create_task(ask(app, "tab", sent)))
            await until(lambda sent=sent: len(sent) > 1)  # type: ignore[misc]
        out = connections["default"].pool.get_stats()["pool_available"]
        for closed in tabs:
            closed.set()
        await asyncio.gather(*tasks)
        pool = connections["default"].pool
    return {
        "rows": [sent[1]["body"].isdigit() if len(sent) > 1 else sent for sent in answers],
        "available": out,
        "closed": pool.closed,
        "left": backends(),
    }


async def raising_receiver() -> Any:
    """What lifeguard sends: the receiver that raises is reported, and the other one hears of it."""
    told: list[str] = []

    def breaks(**_: Any) -> None:
        raise ValueError("a receiver broke")

    def listens(**_: Any) -> None:
        told.append("listens")

    request_finished.connect(breaks)
    request_finished.connect(listens)
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    logging.getLogger("lifeguard.unit").addHandler(Keep())
    app = lifeguard.wrap(get_asgi_application())
    async with lifeguard.worker():
        try:
            await ask(app, "cancelled", [])
        except asyncio.CancelledError:
            pass
    return {"told": told, "said": [text for text in records if "a receiver broke" in text]}


def stream_elsewhere() -> Any:
    """A WSGI server that reads the body in another thread, as granian did before 1.5."""
    app = lifeguard.wrap(get_wsgi_application())
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/stream",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "wsgi.input": sys.stdin.buffer,
        "wsgi.url_scheme": "http",
    }
    left: list[int] = []

    def read(body: Any) -> None:
        left.extend(backends() for _ in body)
        body.close()
        left.append(backends())

    with lifeguard.worker():
        body = app(environ, lambda status, headers, exc_info=None: None)
        reader = threading.Thread(target=read, args=(body,))
        reader.start()
        reader.join()
    return {"queries": len(used), "left": left}


def care() -> Any:
    """What a lane's clean-up does with a transaction: nothing, unless it has to."""
    care = ConnectionCare()
    result: dict[str, Any] = {}

    def lane() -> None:
        care.begin(1)
        transaction.atomic().__enter__()
        before = backend()
        result["held"] = care.held()
        care.clean()
        result["goes on"] = connection.connection is not None and backend() == before
        care.clean(force=True)
        result["forced"] = connection.connection is None and not connection.in_atomic_block
        assert thread.lane == 1

    run = threading.Thread(target=lane)
    run.start()
    run.join()
    return result


SCENES: dict[str, Callable[[], Any]] = {
    "pool of one": lambda: asyncio.run(pool_of_one()),
    "raising receiver": lambda: asyncio.run(raising_receiver()),
    "stream elsewhere": stream_elsewhere,
    "care": care,
}

if __name__ == "__main__":
    print(json.dumps(SCENES[scene]()))
