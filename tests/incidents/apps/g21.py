"""A Celery task that starts processes, each of which authenticates with the database."""

from __future__ import annotations

import multiprocessing

from tests.incidents.apps import GUARDED, log
from tests.incidents.apps.celery_site import make_django_celery

app = make_django_celery(__name__)
urlpatterns: list[object] = []

from django.db import connection, transaction  # noqa: E402

if GUARDED:
    import lifeguard.celery

    lifeguard.celery.install(app)


def backend() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def authenticate_worker() -> None:
    log.write("authenticated", backend=backend())


@app.task(name="compute")
def compute() -> list[int]:
    with transaction.atomic():
        before = backend()
        for _ in range(2):
            process = multiprocessing.get_context("fork").Process(target=authenticate_worker)
            process.start()
            process.join()
        return [before, backend()]
