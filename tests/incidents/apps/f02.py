"""A WSGI app with a global pool, to be preloaded."""

from __future__ import annotations

from psycopg_pool import ConnectionPool

from tests.incidents.apps import DSN, GUARDED, PATIENCE, log

pool = ConnectionPool(
    DSN, min_size=1, max_size=2, timeout=PATIENCE, open=True, check=ConnectionPool.check_connection
)
pool.wait()  # fail early, as its documentation advises


def app(environ, start_response):
    try:
        with pool.connection() as conn:
            log.write("served", backend=conn.info.backend_pid)
        status = "200 OK"
        body = b"ok"
    except Exception as exc:
        status = "500 Internal Server Error"
        body = type(exc).__name__.encode()
    start_response(status, [("Content-Length", str(len(body)))])
    return [body]


if GUARDED:
    import lifeguard

    app = lifeguard.wrap(app, resources=[pool])
