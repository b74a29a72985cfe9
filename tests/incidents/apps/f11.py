"""A WSGI app that tells each user a row of their own, to be preloaded."""

from __future__ import annotations

import os
from urllib.parse import parse_qs

from psycopg_pool import ConnectionPool

from tests.incidents.apps import DSN, GUARDED, log

pool = ConnectionPool(
    DSN, min_size=1, max_size=1, timeout=5, open=True, kwargs={"autocommit": True}
)
pool.wait()  # fail early, as its documentation advises


def app(environ, start_response):
    query = parse_qs(environ["QUERY_STRING"])
    user = query["user"][0]
    log.write("serving", user=user, worker=os.getpid())
    with pool.connection() as conn:
        if "wait" in query:  # a report that takes its time
            sql = "SELECT %s::text, pg_advisory_lock_shared(%s)"
            row = conn.execute(sql, [user, int(query["wait"][0])]).fetchone()
        else:
            row = conn.execute("SELECT %s::text", [user]).fetchone()
    body = f"row of {row[0]}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


if GUARDED:
    import lifeguard

    app = lifeguard.wrap(app, resources=[pool])
