"""Celery tasks in threads, in a Django project with a native pool that they have to share."""

from __future__ import annotations

import time

from tests.incidents.apps import GUARDED
from tests.incidents.apps.celery_site import make_django_celery

TASKS = 3

app = make_django_celery(__name__, OPTIONS={"pool": {"min_size": 1, "max_size": 1, "timeout": 20}})
urlpatterns: list[object] = []

from django.db import connection  # noqa: E402

if GUARDED:
    import lifeguard.celery

    lifeguard.celery.install(app)


def wait_for_neighbours() -> None:
    """Until the other tasks wait for the pool's connection, or had it before."""
    deadline = time.monotonic() + 15
    while order.others and time.monotonic() < deadline:
        if connection.pool.get_stats().get("requests_waiting") == order.others:
            break
        time.sleep(0.01)
    order.others = 0


@app.task(name="order")
def order() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 'ordered'")
        wait_for_neighbours()
        return cursor.fetchone()[0]


order.others = TASKS - 1
