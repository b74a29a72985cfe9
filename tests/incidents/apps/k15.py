"""A WSGI app whose request takes as long as its query."""

from __future__ import annotations

from psycopg_pool import ConnectionPool

from tests.incidents.apps import DSN, GUARDED, log

pool = ConnectionPool(DSN, min_size=1, max_size=2, timeout=40, open=True)


def app(environ, start_response):
    with pool.connection() as conn:
        log.write("working")
        conn.execute("SELECT pg_sleep(3)")
    log.write("returned")
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


if GUARDED:
    import lifeguard

    app = lifeguard.wrap(app, resources=[pool])
