"""The consumer of a submission queue: some threads take the submissions, and end with them."""

from __future__ import annotations

import gc
import threading

from tests.incidents.apps import log
from tests.incidents.apps.django_site import configure

ROUNDS, THREADS = 15, 4

gc.disable()  # on high load it comes too late, and with many long-lived objects hardly ever
configure(__name__)
urlpatterns: list[object] = []

from django.db import OperationalError, connection  # noqa: E402


def consume(submission: int) -> None:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s", [submission])
            log.write("graded", submission=cursor.fetchone()[0])
    except OperationalError as exc:
        log.write("refused", why=str(exc))


def main() -> None:
    for number in range(ROUNDS):
        threads = [
            threading.Thread(target=consume, args=[number * THREADS + n]) for n in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
