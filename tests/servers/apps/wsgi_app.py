"""The WSGI app of both matrices. What happens to it is in the event log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from psycopg_pool import ConnectionPool

from tests.servers.apps.common import (
    BARE,
    QUERY,
    SIZE,
    BarePool,
    dsn,
    guard,
    log,
    request_id,
    wait_at_gate,
)
from tests.servers.rows import FLOOD, STREAM

if BARE:
    db = BarePool()
else:

    @guard.resource
    def db() -> Iterator[ConnectionPool]:
        with ConnectionPool(dsn(), open=False, **SIZE) as pool:
            pool.wait()
            log.write("opened")
            yield pool
        log.write("closed")  # not in a `finally`: a generator that is thrown away is not closed


def stream(request: str) -> Iterator[bytes]:
    try:
        with db.get().connection() as connection:
            for number in range(STREAM):
                [line] = connection.execute("SELECT %s::text", [f"line {number}\n"]).fetchone()
                yield line.encode()
    finally:
        log.write("ended", id=request)


def flood(request: str) -> Iterator[bytes]:
    try:
        with db.get().connection() as connection:
            connection.execute("SELECT 1")
            yield b"first"
            wait_at_gate(request)
            for _ in range(FLOOD):
                yield b"." * 65536
    finally:
        log.write("ended", id=request)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    view = environ["PATH_INFO"].strip("/")
    request = request_id(environ["QUERY_STRING"])
    log.write("started", id=request)
    if not BARE:
        guard.callback(log.write, "finished", id=request)
    headers = [("Content-Type", "text/plain")]
    if view in ("stream", "flood"):
        start_response("200 OK", headers)
        return stream(request) if view == "stream" else flood(request)
    try:
        if view == "leak":
            connection = db.get().getconn()
            connection.execute("SELECT 1")
        else:
            with db.get().connection() as connection:
                connection.execute("SELECT 1")
                if view == "error":
                    raise RuntimeError("as asked")
                if view == "query":
                    connection.execute("SELECT pg_sleep(%s)", [QUERY])
                if view in ("wait", "block"):
                    log.write("waiting", id=request)
                    wait_at_gate(request)
    finally:
        log.write("ended", id=request)
    body = f"{view} {request}".encode()
    start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
    return [body]


if not BARE:
    app = guard.wrap(app)
