"""A WSGI app that tells each user a row of their own, to be preloaded."""

from __future__ import annotations

import os
from urllib.parse import parse_qs

from sqlalchemy import create_engine, text

from tests.incidents.apps import GUARDED, URL, log

engine = create_engine(URL, pool_size=1, max_overflow=0, isolation_level="AUTOCOMMIT")
with engine.connect() as conn:
    conn.execute(text("SELECT 'are the tables there?'"))


def app(environ, start_response):
    query = parse_qs(environ["QUERY_STRING"])
    user = query["user"][0]
    log.write("serving", user=user, worker=os.getpid())
    with engine.connect() as conn:
        if "wait" in query:  # a report that takes its time
            sql = "SELECT CAST(:user AS text), pg_advisory_lock_shared(:lock)"
            row = conn.execute(text(sql), {"user": user, "lock": int(query["wait"][0])}).one()
        else:
            row = conn.execute(text("SELECT CAST(:user AS text)"), {"user": user}).one()
    body = f"row of {row[0]}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


if GUARDED:
    import lifeguard

    app = lifeguard.wrap(app, resources=[engine])
