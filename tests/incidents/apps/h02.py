"""A health check that asks in threads, all at once. They end with the answer."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

from tests.incidents.apps import log
from tests.incidents.apps.django_left import left
from tests.incidents.apps.django_site import configure

CHECKS = 4

gc.disable()  # a quiet process hardly collects
configure(__name__)
urlpatterns: list[object] = []

from django.db import connection  # noqa: E402

together = threading.Barrier(CHECKS)  # each thread gets a check


def check(number: int) -> bool:
    together.wait(timeout=40)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return True


def main() -> None:
    for _ in range(3):
        with ThreadPoolExecutor(CHECKS) as executor:
            healthy = all(executor.map(check, range(CHECKS)))
        log.write("checked", healthy=healthy)
    log.write("done", left=left())


if __name__ == "__main__":
    main()
