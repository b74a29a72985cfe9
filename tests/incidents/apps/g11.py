"""A Dramatiq worker whose messages use Django, and the five of them that come all the time."""

from __future__ import annotations

import threading

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from tests.incidents.apps import GUARDED, REDIS, log
from tests.incidents.apps.django_left import left
from tests.incidents.apps.django_site import configure

THREADS, ROUNDS = 5, 2

configure(__name__)
urlpatterns: list[object] = []

from django.db import connection  # noqa: E402

broker = RedisBroker(url=REDIS)
if GUARDED:
    import lifeguard.dramatiq

    broker.add_middleware(lifeguard.dramatiq.Middleware())
dramatiq.set_broker(broker)

together = threading.Barrier(THREADS)  # each thread gets a message


@dramatiq.actor(max_retries=0)
def periodic(number: int) -> None:
    together.wait(timeout=40)
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s + 1", [number])
        log.write("run", result=cursor.fetchone()[0])


def main() -> None:
    worker = dramatiq.Worker(broker, worker_threads=THREADS)
    worker.start()
    for number in range(THREADS * ROUNDS):
        periodic.send(number)
    log.wait_count("run", THREADS * ROUNDS)
    log.write("done", left=left())
    worker.stop()
    log.write("stopped", left=left())


if __name__ == "__main__":
    main()
