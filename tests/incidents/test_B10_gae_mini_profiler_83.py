"""Khan/gae_mini_profiler#83: a middleware that wraps the response loses the end of the request.

WSGI puts the end of a request into ``close()`` of the response. A profiler's middleware returned
an iterable of its own without passing ``close()`` on, so what the app had registered for the end
never ran.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from psycopg_pool import ConnectionPool, PoolTimeout

import lifeguard
from lifeguard.testing import Postgres
from tests.incidents.driving import leaks_are_reported
from tests.incidents.serving import Sides

SIZE = 2

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Report:
    """A streamed response which gives its connection back when the server closes it."""

    def __init__(self, pool: ConnectionPool[Any]) -> None:
        self.pool = pool
        self.conn = pool.getconn()

    def __iter__(self) -> Iterator[bytes]:
        for row in self.conn.execute("SELECT generate_series(1, 3)::text"):
            yield row[0].encode()

    def close(self) -> None:
        self.pool.putconn(self.conn)


def make_app(pool: ConnectionPool[Any]) -> App:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return Report(pool)

    return app


def profiled(app: App) -> App:
    """The middleware of the incident: it counts bytes, and forgets ``close()``."""

    def middleware(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        sizes: list[int] = []
        for chunk in app(environ, start_response):
            sizes.append(len(chunk))
            yield chunk

    return middleware


def test_incident_B10(dsn: str) -> None:
    """Bare, as many responses as the pool is large, each sent completely, use it up.

    Guarded, with lifeguard as the outermost wrapper, each request ends, and its connection is back.
    """
    answers = serve(dsn, guarded=False, timeout=2.5)
    assert answers == [b"123"] * SIZE + [b"PoolTimeout"]

    with leaks_are_reported():
        answers = serve(dsn, guarded=True, timeout=40)
    assert answers == [b"123"] * (SIZE + 1)


def serve(dsn: str, *, guarded: bool, timeout: float) -> list[bytes]:
    pool = ConnectionPool(dsn, min_size=1, max_size=SIZE, timeout=timeout, open=False)
    app = profiled(make_app(pool))
    if not guarded:
        with pool:
            return [get(app) for _ in range(SIZE + 1)]
    guard = lifeguard.Lifeguard()
    app = guard.wrap(app, resources=[pool])
    with guard.worker() as worker:
        answers = [get(app) for _ in range(SIZE + 1)]
    worker.close()  # WSGI knows no end of the app; otherwise the end of the process does this
    return answers


def get(app: App) -> bytes:
    """What a server does with a WSGI app, ``close()`` included."""
    try:
        body = app({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, lambda *_: None)
        try:
            return b"".join(body)
        finally:
            close = getattr(body, "close", None)
            if close is not None:
                close()
    except PoolTimeout as exc:
        return type(exc).__name__.encode()


def test_incident_B10_in_django(sides: Sides, pg: Postgres, appname: str) -> None:
    """The same for Django: bare, the connection of a report that was sent completely stays open.

    Guarded, ``request_finished`` is sent, and the connection is closed.
    """
    bare, guarded = sides.serve("gunicorn", "b10")

    for side in (bare, guarded):
        assert side.get("/").text == "123"
    assert pg.wait_count(0, application_name=f"{appname}guarded") == 0
    assert pg.count(f"{appname}bare") == 1
