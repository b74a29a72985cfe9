"""Its tasks: Django's connections in the threads of jobs, and in threads that those start."""

from __future__ import annotations

import asyncio

from django.db import connection
from procrastinate.contrib.django import app

from tests.queues.apps import jobs
from tests.queues.apps.jobs import LOG


def query(n: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    LOG.write("queried", n=n, pid=pid)


@app.task(name="own")
def own(n: int) -> None:
    jobs.unit_ended("ended", n=n)
    query(n)


@app.task(name="inner")
async def inner(n: int) -> None:
    jobs.unit_ended("ended", n=n)
    await asyncio.gather(*(asyncio.to_thread(query, n) for _ in range(3)))
