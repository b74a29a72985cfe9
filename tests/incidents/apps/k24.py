"""A WSGI app with a query that takes longer than the server is ready to wait."""

from __future__ import annotations

from psycopg_pool import ConnectionPool

from tests.incidents.apps import DSN, GUARDED, log

pool = ConnectionPool(DSN, min_size=1, max_size=1, timeout=40, open=False)
if not GUARDED:
    pool.open()


def app(environ, start_response):
    with pool.connection() as conn:
        log.write("working", backend=conn.info.backend_pid)
        conn.execute("SELECT pg_sleep(60)")
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


if GUARDED:
    import lifeguard

    app = lifeguard.wrap(app, resources=[pool])
