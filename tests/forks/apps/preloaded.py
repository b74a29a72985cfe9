"""A server's app as one finds it: the pool is opened at import, and used there, once.

``wsgi`` and ``asgi`` answer the question they are asked (``/1234``), and say which backend it was.
``/fork/1234`` asks a child, forked in the middle of the request, while the request itself has a
connection out, a callback registered and a transaction open. With ``APP_QUIET`` the import ends
when the pool's threads rest.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Iterable
from typing import Any

from psycopg_pool import ConnectionPool

import lifeguard
from tests.contract.pool import in_child
from tests.support.eventlog import EventLog

warnings.simplefilter("ignore", DeprecationWarning)

BARE = bool(os.environ.get("APP_BARE"))
log = EventLog.from_env()
pool = ConnectionPool(os.environ["APP_DSN"], open=True, min_size=1, max_size=2, timeout=10)
guard = lifeguard.Lifeguard(grace=3)


def ask(number: int) -> tuple[int, int]:
    with pool.connection() as conn:
        row = conn.execute("SELECT %s::int, pg_backend_pid()", [number]).fetchone()
    assert row is not None
    return row[0], row[1]


def answer(path: str) -> dict[str, Any]:
    _, *words, number = path.split("/")
    if not words:
        asked, backend = ask(int(number))
        return {"right": asked == int(number), "backend": backend, "pid": os.getpid()}
    return fork(int(number))


def fork(number: int) -> dict[str, Any]:
    pid = os.getpid()
    guard.callback(log.write, "callback", parent=pid)
    with pool.connection() as conn:
        mine = conn.info.backend_pid
        conn.execute("CREATE TEMP TABLE IF NOT EXISTS forked (x int)")
        conn.execute("INSERT INTO forked VALUES (1)")
        right, theirs = in_child(lambda: child(number))
        row = conn.execute("SELECT count(*) FROM forked").fetchone()
    assert row is not None
    return {"right": right, "backend": theirs, "parents": mine, "rows": row[0], "pid": pid}


def child(number: int) -> list[Any]:
    with guard.unit():
        asked, backend = ask(number)
    guard._worker.close()
    return [asked == number, backend]


def wsgi(environ: Any, start_response: Any) -> Iterable[bytes]:
    body = json.dumps(answer(environ["PATH_INFO"])).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"  # so that it has no lifespan of its own
    body = json.dumps(answer(scope["path"])).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def rests(thread: Any) -> bool:
    """Whether it waits for a lock, as threads do that have nothing to do."""
    frame = sys._current_frames().get(thread.ident)
    return frame is not None and frame.f_code.co_name == "wait"


def quiet() -> None:
    looks, deadline = 0, time.monotonic() + 60
    while looks < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
        threads = [*pool._workers, pool._sched_runner]
        looks = looks + 1 if all(rests(thread) for thread in threads) else 0
    assert looks == 10, "the pool's threads do not come to rest"


log.write("import", backend=ask(-1)[1])
if os.environ.get("APP_QUIET"):
    quiet()
if not BARE:
    wsgi = guard.wrap(wsgi, resources=[pool])
    asgi = guard.wrap(asgi, resources=[pool])
