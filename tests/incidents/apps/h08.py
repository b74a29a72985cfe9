"""A dispatcher that has asked the database, and starts its periodic beat as a process."""

from __future__ import annotations

import multiprocessing

from tests.incidents.apps import log
from tests.incidents.apps.django_site import configure

configure(__name__)
urlpatterns: list[object] = []

from django.db import connection, transaction  # noqa: E402


def query(who: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        log.write(who, backend=cursor.fetchone()[0])


def beat() -> None:
    query("beat")
    connection.close()


def main() -> None:
    try:
        with transaction.atomic():
            query("dispatcher")
            process = multiprocessing.get_context("fork").Process(target=beat)
            process.start()
            process.join()
            query("dispatcher")
    except Exception as exc:
        log.write("failed", error=type(exc).__name__)


if __name__ == "__main__":
    main()
