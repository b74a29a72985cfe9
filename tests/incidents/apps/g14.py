"""A bookmark manager: persistent connections with health checks, and a huey thread for tasks."""

from __future__ import annotations

import psycopg
from huey import RedisHuey
from huey.exceptions import TaskException

from tests.incidents.apps import DSN, GUARDED, REDIS, log
from tests.incidents.apps.django_site import NAME, configure

configure(__name__, CONN_MAX_AGE=600, CONN_HEALTH_CHECKS=True)
urlpatterns: list[object] = []

from django.db import connection  # noqa: E402

huey = RedisHuey(__name__, url=REDIS)


def snapshot() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


if GUARDED:
    import lifeguard

    snapshot = lifeguard.task(snapshot)

snapshot = huey.task()(snapshot)


def restart_database() -> None:
    query = (
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s"
    )
    with psycopg.connect(DSN, autocommit=True) as server:
        server.execute(query, [NAME])


def run() -> None:
    try:
        log.write("done", backend=snapshot().get(blocking=True, timeout=40))
    except TaskException as exc:
        log.write("failed", error=exc.metadata["error"])


def main() -> None:
    consumer = huey.create_consumer(workers=1, periodic=False)
    consumer.start()
    run()
    run()
    restart_database()
    for _ in range(3):
        run()
    consumer.stop(graceful=True)


if __name__ == "__main__":
    main()
