"""What the jobs of sync queues do beside ``jobs.py``: ask through Django, run too long."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.queues.apps.site"

import django

from tests.queues.apps.jobs import LOG, adb, db, unit_ended

django.setup()

from django.db import connection  # noqa: E402  # Django wants to be set up first

HANGS = 120.0


def query(n: int) -> int:
    """Ask through Django. A connection per thread, which it keeps until somebody closes it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s::int, pg_backend_pid()", [n])
        row: Any = cursor.fetchone()
    LOG.write("asked", n=row[0], backend=row[1])
    return int(row[0])


def fail(n: int) -> None:
    query(n)
    raise RuntimeError("this job fails")


def hang(alarm: bool = False) -> None:
    """Borrow a connection, and run for longer than anybody waits.

    With *alarm* the time that the queue allows is over as soon as the connection is borrowed,
    where that time is kept by SIGALRM: however slow the machine is.
    """
    unit_ended("ended keep", how="hangs")
    db().getconn().execute("SELECT 1")
    LOG.write("kept", how="hangs")
    if alarm:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    end = time.monotonic() + HANGS
    while time.monotonic() < end:  # an exception from another thread comes between two lines
        time.sleep(0.01)
    LOG.write("hung")


def until_told_to_stop() -> None:
    """Run until the worker has got its SIGTERM: RQ has another handler for it from then on.

    Where no job runs, RQ's handler raises, which may be in the midst of a command to redis, whose
    answer the next command then takes for its own. While a job runs it makes a note.
    """
    before = signal.getsignal(signal.SIGTERM)
    LOG.write("waiting")
    while signal.getsignal(signal.SIGTERM) == before:
        time.sleep(0.01)


async def ahang() -> None:
    """The same on an event loop."""
    unit_ended("ended keep", how="hangs")
    conn = await (await adb()).getconn()
    await conn.execute("SELECT 1")
    LOG.write("kept", how="hangs")
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    await asyncio.sleep(HANGS)
    LOG.write("hung")
