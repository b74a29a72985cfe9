"""Celery tasks in threads, in a Django project with a native pool that they have to share."""

from __future__ import annotations

import threading
import time

from tests.incidents.apps import GUARDED
from tests.incidents.apps.celery_site import make_django_celery

TASKS = 3

app = make_django_celery(__name__, OPTIONS={"pool": {"min_size": 1, "max_size": 1, "timeout": 40}})
urlpatterns: list[object] = []

from django.db import connection  # noqa: E402

if GUARDED:
    import lifeguard.celery

    lifeguard.celery.install(app)


together, first = threading.Barrier(TASKS), threading.Event()


@app.task(name="order")
def order() -> str:
    place = together.wait(timeout=40)
    if place:
        first.wait(timeout=40)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 'ordered'")
        if not place:
            first.set()
            wait_for_neighbours()
        return cursor.fetchone()[0]


def wait_for_neighbours() -> None:
    """Until the other tasks wait for the pool's connection."""
    deadline = time.monotonic() + 40
    while connection.pool.get_stats().get("requests_waiting") != TASKS - 1:
        if time.monotonic() > deadline:
            raise TimeoutError("the other tasks do not wait")
        time.sleep(0.01)
