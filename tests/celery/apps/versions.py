"""The async and sync tasks, and those of a Django project, for older versions of Celery."""

from __future__ import annotations

import os

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.celery.apps.site"

import celery
from django.db import connections, transaction

import lifeguard.celery
from tests.celery.apps.async_tasks import app

lifeguard.celery.install(app)


@app.task(name="version")
def version() -> str:
    return str(celery.__version__)


@app.task(name="orm")
def orm(alias: str, number: int) -> tuple[int, int]:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT %s::int, pg_backend_pid(), pg_sleep(0.002)", [number])
        answer, backend, _ = cursor.fetchone()
    return answer, backend


@app.task(name="nested")
def nested(alias: str) -> bool:
    """Whether a call in the middle of a transaction leaves the transaction alone."""
    with transaction.atomic(alias):
        before = orm("kept", 1)[1], orm(alias, 1)[1]
        inner = orm.apply(args=(alias, 1)).get(disable_sync_subtasks=False)[1]
        after = orm("kept", 1)[1], orm(alias, 1)[1]
    return before == after and inner == before[1]
