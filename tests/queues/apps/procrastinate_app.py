"""A procrastinate worker with async tasks, and sync ones, which it runs in threads."""

from __future__ import annotations

import os

import procrastinate
from procrastinate import PsycopgConnector
from psycopg.conninfo import make_conninfo

from tests.queues.apps import jobs
from tests.queues.apps.jobs import BARE, DSN, LOG, QUEUE

if "APP_DJANGO" in os.environ:  # in the same process, and procrastinate does not know
    import django
    from django.conf import settings

    from tests.django.databases import database

    settings.configure(
        INSTALLED_APPS=[] if BARE else ["lifeguard.django"],
        DATABASES={"default": database(DSN, application_name=f"{QUEUE}django")},
    )
    django.setup()

app = procrastinate.App(
    connector=PsycopgConnector(
        conninfo=make_conninfo(DSN, options=f"-c search_path={os.environ['APP_SCHEMA']}")
    ),
    worker_defaults={
        "concurrency": 4,
        "fetch_job_polling_interval": 0.05,
        "abort_job_polling_interval": 0.1,
        "listen_notify": False,
    },
)
MODE = os.environ.get("APP_MODE", "task")
task = jobs.task if MODE == "task" else lambda func: func

if not BARE and MODE == "install":
    import lifeguard.procrastinate

    lifeguard.procrastinate.install(app)


@app.task(name="select")
@task
async def select(n: int) -> int:
    return await jobs.select(n)


@app.task(name="select_sync")
@task
def select_sync(n: int) -> int:
    return jobs.select_sync(n)


@app.task(name="keep", retry=1)
@task
async def keep(how: str) -> None:
    await jobs.keep(how)


@app.task(name="keep_sync")
@task
def keep_sync(how: str) -> None:
    jobs.keep_sync(how)


@app.task(name="django")
@task
def django_(n: int) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    LOG.write("queried", n=n, pid=pid)
