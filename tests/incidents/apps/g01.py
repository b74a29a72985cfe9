"""Celery tasks in a Django project with a native pool."""

from __future__ import annotations

import os

from tests.incidents.apps import GUARDED
from tests.incidents.apps.celery_site import make_django_celery

app = make_django_celery(__name__, OPTIONS={"pool": {"min_size": 1, "max_size": 1}})
urlpatterns: list[object] = []

from django.db import connection  # noqa: E402

if GUARDED:
    import lifeguard.celery

    lifeguard.celery.install(app)


@app.task(name="order")
def order() -> tuple[int, int]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return os.getpid(), cursor.fetchone()[0]
