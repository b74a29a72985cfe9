"""A WSGI app that looks something up at import, for a server that imports it before it forks."""

from __future__ import annotations

import os

from psycopg_pool import ConnectionPool

from tests.incidents.apps import DSN, GUARDED, log

pool = ConnectionPool(DSN, min_size=1, max_size=1, timeout=5, open=True)


def ask() -> str:
    with pool.connection() as conn:
        return conn.execute("SELECT 'ok'").fetchone()[0]


ask()  # plugins to load, say


def app(environ, start_response):
    try:
        status, body = "200 OK", ask()
    except Exception as exc:
        status, body = "500 Internal Server Error", str(exc)
    log.write("served", worker=os.getpid())
    start_response(status, [("Content-Length", str(len(body)))])
    return [body.encode()]


if GUARDED:
    import lifeguard

    app = lifeguard.wrap(app, resources=[pool])
