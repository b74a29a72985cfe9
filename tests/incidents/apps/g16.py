"""An RQ worker whose main process has asked the database, as its start-up does."""

from __future__ import annotations

import logging

from psycopg_pool import ConnectionPool
from redis import Redis
from rq import Queue, Worker

from tests.incidents.apps import DSN, GUARDED, REDIS, log

JOBS = 4

pool = ConnectionPool(DSN, min_size=1, max_size=1, timeout=10, open=False)
redis = Redis.from_url(REDIS)


def job(number: int) -> None:
    with pool.connection() as conn:
        conn.execute("SELECT %s", [number])
        log.write("job", backend=conn.info.backend_pid)


def check() -> None:
    with pool.connection() as conn:
        conn.execute("SELECT 1")
        log.write("check", backend=conn.info.backend_pid)


def work(worker_class: type[Worker]) -> None:
    queue = Queue("default", connection=redis)
    check()
    for number in range(JOBS):
        queue.enqueue(f"{__spec__.name}.job", number)
    worker_class([queue], connection=redis).work(burst=True, logging_level=logging.WARNING)
    check()


if __name__ == "__main__":
    import sys

    sys.modules[__spec__.name] = sys.modules["__main__"]  # jobs name the module, not __main__
    if GUARDED:
        import lifeguard
        import lifeguard.rq

        with lifeguard.worker(resources=[pool]):
            work(lifeguard.rq.Worker)
    else:
        with pool:
            work(Worker)
