"""Celery tasks in a Django project with a native pool, which is used while the app is loaded."""

from __future__ import annotations

from tests.incidents.apps import GUARDED, PATIENCE
from tests.incidents.apps.celery_site import make_django_celery

pool = {"min_size": 1, "max_size": 2, "timeout": PATIENCE}
app = make_django_celery(__name__, OPTIONS={"pool": pool})
urlpatterns: list[object] = []

from django.db import connection  # noqa: E402

if GUARDED:
    import lifeguard.celery

    lifeguard.celery.install(app)

with connection.cursor() as cursor:  # settings that are kept in the database, say
    cursor.execute("SELECT 'EUR'")


@app.task(name="order")
def order() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 6 * 7")
        return cursor.fetchone()[0]
