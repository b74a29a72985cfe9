"""A WSGI app with a pool that is open before the server forks, and grows when it is needed."""

from __future__ import annotations

from urllib.parse import parse_qs

from psycopg_pool import ConnectionPool

from tests.incidents.apps import DSN, GUARDED, log

pool = ConnectionPool(
    DSN, min_size=1, max_size=5, timeout=2, open=True, kwargs={"autocommit": True}
)
pool.wait()  # fail early, as its documentation advises


def app(environ, start_response):
    key = parse_qs(environ["QUERY_STRING"]).get("wait")
    try:
        with pool.connection() as conn:
            if key:  # a page that takes its time
                log.write("slow")
                conn.execute("SELECT pg_advisory_lock_shared(%s)", [int(key[0])])
        status, body = "200 OK", b"ok"
    except Exception as exc:
        status, body = "504 Gateway Timeout", type(exc).__name__.encode()
    start_response(status, [("Content-Length", str(len(body)))])
    return [body]


if GUARDED:
    import lifeguard

    app = lifeguard.wrap(app, resources=[pool])
