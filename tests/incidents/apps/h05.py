"""A server whose jobs run in a thread of its own, for days."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg

from tests.incidents.apps import DSN, GUARDED, log
from tests.incidents.apps.django_left import left
from tests.incidents.apps.django_site import NAME, configure

configure(__name__)
urlpatterns: list[object] = []

from django.db import connection  # noqa: E402


def job() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        return cursor.fetchone()[0]


if GUARDED:
    import lifeguard

    job = lifeguard.task(job)


def drop_idle_connections() -> int:
    """What MySQL's wait_timeout and PostgreSQL's idle_session_timeout do, and many a firewall."""
    query = (
        "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
        " WHERE application_name = %s AND state = 'idle'"
    )
    with psycopg.connect(DSN, autocommit=True) as server:
        row = server.execute(query, [NAME]).fetchone()
    assert row is not None
    return int(row[0])


def run(executor: ThreadPoolExecutor) -> None:
    try:
        log.write("done", result=executor.submit(job).result())
    except Exception as exc:
        log.write("failed", error=str(exc).splitlines()[0])


def main() -> None:
    with ThreadPoolExecutor(1) as executor:
        run(executor)
        left()  # a backend leaves a moment after its client
        log.write("night", dropped=drop_idle_connections())
        for _ in range(3):
            run(executor)


if __name__ == "__main__":
    main()
