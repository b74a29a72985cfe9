"""The supervisor of a queue: it has a pool, forks its workers, and restarts those that fail."""

from __future__ import annotations

import os

from psycopg_pool import ConnectionPool

from tests.incidents.apps import DSN, GUARDED, log

pool = ConnectionPool(DSN, min_size=1, max_size=4, timeout=1, open=True)
pool.wait()


def work() -> None:
    with pool.connection() as job:
        job.execute("SELECT 'claimed'")
        with pool.connection() as heartbeat:
            heartbeat.execute("SELECT 'alive'")


def supervise() -> None:
    with pool.connection() as conn:
        conn.execute("SELECT 'registered'")
    for _ in range(2):  # for ever, in the original
        child = os.fork()
        if child == 0:
            try:
                work()
            except Exception as exc:
                log.write("failed", error=type(exc).__name__)
                os._exit(1)
            log.write("worked")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            break


if __name__ == "__main__":
    if GUARDED:
        import lifeguard

        with lifeguard.worker(resources=[pool]):
            supervise()
    else:
        supervise()
        pool.close()
