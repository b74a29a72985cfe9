"""`gunicorn --preload`: a pool opened at import, before the workers are forked.

Bare, all workers hold the same sockets. Two of them talk on one connection at once: answers go to
whoever reads first, so a request gets a row that belongs to another one, an error, or nothing.
"""

# ruff: noqa: TC003 - written as one writes an app
from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from psycopg_pool import ConnectionPool

pool = ConnectionPool(
    os.environ["DSN"], open=True, min_size=3, max_size=3, timeout=1, kwargs={"autocommit": True}
)
pool.wait()


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    token = environ["PATH_INFO"].rpartition("/")[2]
    try:
        with pool.connection() as conn:
            (answer,) = conn.execute("select %s::text", [token]).fetchone() or ("",)
    except Exception as error:
        start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
        return [f"{type(error).__name__}: {error}".encode()]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answer.encode()]


if os.environ.get("GUARDED"):
    import lifeguard

    app = lifeguard.wrap(app, resources=[pool])
