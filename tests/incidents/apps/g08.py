"""A Celery app generated from a kit: its engine is made at import, and asked there once."""

from __future__ import annotations

import fcntl
import os
import tempfile

from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from tests.incidents.apps import GUARDED, URL, log
from tests.incidents.apps.celery_site import make_celery

engine = create_engine(URL, pool_size=2)
app = make_celery(__name__)

if GUARDED:
    import lifeguard.celery

    lifeguard.celery.install(app, resources=[engine])

with Session(engine) as session:  # does the schema fit?
    session.execute(text("SELECT 'yes'"))

turns = tempfile.TemporaryFile()  # noqa: SIM115


@app.task(name="order")
def order() -> list[int]:
    """Asks while no other task does, and ends when another child has asked as well."""
    fcntl.lockf(turns, fcntl.LOCK_EX)
    with Session(engine) as session:
        backend = session.scalar(text("SELECT pg_backend_pid()"))
    fcntl.lockf(turns, fcntl.LOCK_UN)
    log.write("asked")
    log.wait(lambda events: len({event.pid for event in events}) == 2, "asked")
    return [os.getpid(), backend]
