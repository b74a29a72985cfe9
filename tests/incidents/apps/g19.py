"""A scheduler's worker, which forks for each job, and does its maintenance itself. Both ask."""

from __future__ import annotations

import os

from tests.incidents.apps import log
from tests.incidents.apps.django_site import configure

JOBS = 3

configure(__name__, CONN_MAX_AGE=600)
urlpatterns: list[object] = []

from django.db import connection, connections  # noqa: E402


def ask(event: str) -> None:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            log.write(event, backend=cursor.fetchone()[0])
    except Exception as exc:
        log.write(f"{event} failed", error=str(exc).splitlines()[0])


def run_job() -> None:
    child = os.fork()
    if child == 0:
        ask("job")
        os._exit(0)
    os.waitpid(child, 0)


def main() -> None:
    connections.close_all()  # before any fork, says the original
    ask("maintenance")  # of a job that was abandoned; its failure is saved by the worker
    for _ in range(JOBS):
        run_job()
    ask("maintenance")
    connections.close_all()


if __name__ == "__main__":
    main()
