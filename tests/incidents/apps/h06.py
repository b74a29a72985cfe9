"""A periodic sync that asks its sources in parallel: a thread each, which ends with its answer."""

from __future__ import annotations

import threading

from tests.incidents.apps import PATIENCE, log
from tests.incidents.apps.django_site import configure

SYNCS, SOURCES = 3, 2

configure(__name__, OPTIONS={"pool": {"min_size": 1, "max_size": 4, "timeout": PATIENCE}})
urlpatterns: list[object] = []

from django.db import connection  # noqa: E402


def ask(source: int, answers: dict[int, str]) -> None:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s + 1", [source])
            answers[source] = str(cursor.fetchone()[0])
    except Exception as exc:
        answers[source] = str(exc)


def sync() -> list[str]:
    answers: dict[int, str] = {}
    threads = [threading.Thread(target=ask, args=[n, answers]) for n in range(SOURCES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answers[source] for source in range(SOURCES)]


def main() -> None:
    for _ in range(SYNCS):
        log.write("synced", answers=sync())
    connection.close_pool()


if __name__ == "__main__":
    main()
