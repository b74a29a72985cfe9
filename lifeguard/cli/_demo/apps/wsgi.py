"""`gunicorn` with threads: a view that raises between `getconn()` and `putconn()`.

Bare, every "not found" is answered properly with a 404 and costs one connection: the garbage
collector closes it, the pool counts it as lent out for ever. After `max_size` of them PostgreSQL
has no connection any more, and the pool has none to give.
"""

# ruff: noqa: TC003 - written as one writes an app
from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from psycopg_pool import ConnectionPool

pool = ConnectionPool(os.environ["DSN"], open=True, min_size=1, max_size=6, timeout=1)


class NotFound(Exception):
    """What a framework turns into a 404."""


def echo(token: str) -> str:
    conn = pool.getconn()
    row = conn.execute("select %s::text where %s <> 'missing'", [token, token]).fetchone()
    if row is None:
        raise NotFound(token)
    pool.putconn(conn)
    return str(row[0])


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    try:
        status, text = "200 OK", echo(environ["PATH_INFO"].rpartition("/")[2])
    except NotFound as error:
        status, text = "404 Not Found", f"not found: {error}"
    except Exception as error:
        status, text = "500 Internal Server Error", f"{type(error).__name__}: {error}"
    start_response(status, [("Content-Type", "text/plain")])
    return [text.encode()]


if os.environ.get("GUARDED"):
    import lifeguard

    app = lifeguard.wrap(app, resources=[pool])
