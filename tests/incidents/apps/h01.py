"""An agent whose steps run in a thread pool, which lives as long as the agent does."""

from __future__ import annotations

import concurrent.futures
import threading

from tests.incidents.apps import GUARDED, log
from tests.incidents.apps.django_left import left
from tests.incidents.apps.django_site import configure

STEPS = 4

configure(__name__)
urlpatterns: list[object] = []

from django.db import connection  # noqa: E402

together = threading.Barrier(STEPS)  # each thread gets a step


def step(number: int) -> int:
    together.wait(timeout=40)
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s + 1", [number])
        result: int = cursor.fetchone()[0]
    return result


def main() -> None:
    make = concurrent.futures.ThreadPoolExecutor
    if GUARDED:
        import lifeguard

        make = lifeguard.ThreadPoolExecutor
    with make(STEPS) as executor:
        results = list(executor.map(step, range(STEPS)))
        log.write("done", results=results, left=left())


if __name__ == "__main__":
    main()
