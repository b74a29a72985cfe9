"""Celery tasks that ask through a pool which was opened when the module was imported."""

from __future__ import annotations

import fcntl
import os
import tempfile

from psycopg_pool import ConnectionPool

from tests.incidents.apps import DSN, GUARDED, log
from tests.incidents.apps.celery_site import make_celery

pool = ConnectionPool(DSN, min_size=1, max_size=1, timeout=40, open=True)
pool.wait()
app = make_celery(__name__)

if GUARDED:
    import lifeguard.celery

    lifeguard.celery.install(app, resources=[pool])

turns = tempfile.TemporaryFile()  # noqa: SIM115


@app.task(name="order")
def order() -> list[int]:
    """Asks while no other task does, and ends when another child has asked as well."""
    fcntl.lockf(turns, fcntl.LOCK_EX)
    with pool.connection() as conn:
        (backend,) = conn.execute("SELECT pg_backend_pid()").fetchone()
    fcntl.lockf(turns, fcntl.LOCK_UN)
    log.write("asked")
    log.wait(lambda events: len({event.pid for event in events}) == 2, "asked")
    return [os.getpid(), backend]
