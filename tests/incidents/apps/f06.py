"""The supervisor of a Django task queue: it forks its workers, and restarts those that fail."""

from __future__ import annotations

import os
import threading

from tests.incidents.apps import PATIENCE, log
from tests.incidents.apps.django_site import configure

configure(__name__, OPTIONS={"pool": {"min_size": 1, "max_size": 4, "timeout": PATIENCE}})
urlpatterns: list[object] = []

from django.db import connection  # noqa: E402


def heartbeat(beaten: list[str]) -> None:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 'alive'")
        connection.close()
    except Exception as exc:
        beaten.append(str(exc))


def work() -> None:
    failed: list[str] = []
    with connection.cursor() as cursor:
        cursor.execute("SELECT 'claimed'")
        thread = threading.Thread(target=heartbeat, args=[failed])
        thread.start()
        thread.join()
    if failed:
        raise RuntimeError(failed[0])


def supervise() -> None:
    connection.pool.open()
    connection.pool.wait()  # fail early, as its documentation advises
    with connection.cursor() as cursor:
        cursor.execute("SELECT 'registered'")
    for _ in range(2):  # for ever, in the original
        child = os.fork()
        if child == 0:
            try:
                work()
            except Exception as exc:
                log.write("failed", error=str(exc))
                os._exit(1)
            log.write("worked")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            break


if __name__ == "__main__":
    supervise()
    connection.close()
    connection.close_pool()
