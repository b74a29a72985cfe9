"""A child that closes what it inherited, as everybody is told to."""

from __future__ import annotations

import os

import psycopg
from psycopg_pool import ConnectionPool

from tests.incidents.apps import DSN, GUARDED, log

pool = ConnectionPool(DSN, min_size=1, max_size=1, timeout=5, open=True)


def use() -> None:
    try:
        with pool.connection() as conn:
            conn.execute("SELECT 1")
            log.write("answered", backend=conn.info.backend_pid)
    except psycopg.OperationalError as exc:
        log.write("broken", error=str(exc))


def main() -> None:
    use()
    child = os.fork()
    if child == 0:  # what a post_fork hook does that wants to begin clean
        pool.close()
        os._exit(0)
    os.waitpid(child, 0)
    use()


if __name__ == "__main__":
    if GUARDED:
        import lifeguard

        with lifeguard.worker(resources=[pool]):
            main()
    else:
        main()
        pool.close()
