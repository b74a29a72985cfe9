"""A job of APScheduler's, which does its work in an executor of its own, and tidies up after it."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

from apscheduler.schedulers.background import BackgroundScheduler

from tests.incidents.apps import log
from tests.incidents.apps.django_left import left
from tests.incidents.apps.django_site import configure

RUNS, THREADS = 3, 5

gc.disable()  # a process that waits for its next job hardly collects
configure(__name__)
urlpatterns: list[object] = []

from django.db import close_old_connections, connection  # noqa: E402

together = threading.Barrier(THREADS)  # each thread gets a row


def do_something_interesting(row: int) -> int:
    together.wait(timeout=40)
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s + 1", [row])
        return cursor.fetchone()[0]


def job() -> None:
    with ThreadPoolExecutor(THREADS) as executor:
        results = list(executor.map(do_something_interesting, range(THREADS)))
    close_old_connections()
    log.write("run", results=results)


def main() -> None:
    scheduler = BackgroundScheduler(timezone="UTC")
    scheduler.start()
    for run in range(RUNS):
        scheduler.add_job(job)
        log.wait_count("run", run + 1)
    scheduler.shutdown()
    log.write("done", left=left())


if __name__ == "__main__":
    main()
