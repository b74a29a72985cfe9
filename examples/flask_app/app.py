"""A guest book, on Flask: one pool per worker process, shared by its threads.

Start it with ``python examples/run.py flask_app``, or on a PostgreSQL of your own::

    export LIFEGUARD_DSN=postgresql://...
    gunicorn --chdir examples/flask_app -k gthread --threads 4 app:app
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from flask import Flask, Response, abort, request
from psycopg_pool import ConnectionPool

import lifeguard

DSN = os.environ["LIFEGUARD_DSN"]


@lifeguard.resource
def db() -> Iterator[ConnectionPool]:
    """Opened by the first request of a worker process, closed at the end of that process."""
    with ConnectionPool(DSN, open=False, min_size=1, max_size=4) as pool:
        with pool.connection() as conn:
            conn.execute("SELECT pg_advisory_xact_lock(1)")  # the workers start together
            conn.execute("CREATE TABLE IF NOT EXISTS guest (id serial PRIMARY KEY, name text)")
        yield pool


app = Flask(__name__)


@app.post("/guests/<name>")
def sign(name: str) -> dict[str, int]:
    with db.get().connection() as conn:
        row = conn.execute("INSERT INTO guest (name) VALUES (%s) RETURNING id", [name]).fetchone()
    assert row is not None
    app.logger.info("%s has signed", name)
    lifeguard.callback(app.logger.info, "%s %s has ended", request.method, request.path)
    return {"id": row[0]}


@app.get("/guests")
def guests() -> Response:
    """A stream: the connection is out while it runs, and back however it ends."""

    def lines() -> Iterator[str]:
        with db.get().connection() as conn:
            for (name,) in conn.execute("SELECT name FROM guest ORDER BY id"):
                yield f"{name}\n"

    return Response(lines(), mimetype="text/plain")


@app.get("/careless/<int:number>")
def careless(number: int) -> str:
    """How not to do it: the 404 forgets the connection. lifeguard takes it back and says so."""
    conn = db.get().getconn()
    row = conn.execute("SELECT name FROM guest WHERE id = %s", [number]).fetchone()
    if row is None:
        abort(404)
    db.get().putconn(conn)
    return str(row[0])


app.wsgi_app = lifeguard.wrap(app.wsgi_app)  # type: ignore[method-assign]
