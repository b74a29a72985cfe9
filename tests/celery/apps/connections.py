"""Tasks that ask PostgreSQL for their own number, through everything people keep connections in.

``APP_IMPORT`` says that the pool which is opened at import is, too: it costs connections in the
parent, and without lifeguard it breaks the worker.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.celery.apps.site"

from celery.signals import worker_process_init, worker_process_shutdown
from psycopg_pool import ConnectionPool

from tests.celery.apps import BARE, celery_app, log, named

app = celery_app("connections")

AT_IMPORT = bool(os.environ.get("APP_IMPORT"))
SIZES: dict[str, Any] = {"min_size": 2, "max_size": 4, "timeout": 40}
QUESTION = "SELECT %s::int, pg_backend_pid(), pg_sleep(%s)"

at_import = ConnectionPool(named("import"), open=AT_IMPORT, **SIZES)
lazy: ConnectionPool[Any] | None = None
in_init: ConnectionPool[Any] | None = None
_opening = threading.Lock()

if not BARE:
    import lifeguard.celery

    lifeguard.celery.install(app, resources=[at_import] if AT_IMPORT else [])

    @lifeguard.resource
    def lazy_pool() -> Any:
        with ConnectionPool(named("lazy"), open=False, **SIZES) as pool:
            yield pool

    @lifeguard.resource
    def init_pool() -> Any:
        with ConnectionPool(named("init"), open=False, **SIZES) as pool:
            yield pool


@worker_process_init.connect
def open_pool(**_: Any) -> None:
    """As psycopg's documentation says; what lifeguard replaces by a resource."""
    global in_init
    if BARE:
        log.write("init")
        in_init = ConnectionPool(named("init"), open=True, **SIZES)


@worker_process_shutdown.connect
def close_pool(**_: Any) -> None:
    if in_init is not None:
        in_init.close()


def pool_of(column: str) -> ConnectionPool[Any]:
    global lazy, in_init
    if column == "import":
        return at_import
    if not BARE:
        return {"lazy": lazy_pool, "init": init_pool}[column].get()
    with _opening:
        if column == "lazy":
            if lazy is None:
                lazy = ConnectionPool(named("lazy"), open=True, **SIZES)
            return lazy
        if in_init is None:  # where the signal is not sent
            in_init = ConnectionPool(named("init"), open=True, **SIZES)
        return in_init


@app.task(name="ask")
def ask(column: str, number: int, seconds: float = 0.0) -> tuple[int, int, int, float]:
    """The number it was given, from PostgreSQL; whose backend; in which process; how long."""
    begin = time.perf_counter()
    if column in ("default", "kept", "pooled"):
        from django.db import connections

        with connections[column].cursor() as cursor:
            cursor.execute(QUESTION, [number, seconds])
            row: Any = cursor.fetchone()
    else:
        with pool_of(column).connection() as conn:
            row = conn.execute(QUESTION, [number, seconds]).fetchone()
    return row[0], row[1], os.getpid(), time.perf_counter() - begin
