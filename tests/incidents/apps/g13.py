"""A huey consumer whose tasks use Django, as plain tasks: ``@huey.task()``, not ``@db_task()``."""

from __future__ import annotations

import threading

from huey import RedisHuey

from tests.incidents.apps import GUARDED, REDIS, log
from tests.incidents.apps.django_left import left
from tests.incidents.apps.django_site import configure

WORKERS = 4

configure(__name__)
urlpatterns: list[object] = []

from django.db import connection  # noqa: E402

huey = RedisHuey(__name__, url=REDIS)
together = threading.Barrier(WORKERS)  # each worker gets a task


def order(number: int) -> int:
    together.wait(timeout=40)
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s + 1", [number])
        return cursor.fetchone()[0]


if GUARDED:
    import lifeguard

    order = lifeguard.task(order)

order = huey.task()(order)


def main() -> None:
    consumer = huey.create_consumer(workers=WORKERS, periodic=False)
    consumer.start()
    orders = [order(number) for number in range(WORKERS)]
    results = [placed.get(blocking=True, timeout=40) for placed in orders]
    log.write("done", results=results, left=left())
    consumer.stop(graceful=True)


if __name__ == "__main__":
    main()
