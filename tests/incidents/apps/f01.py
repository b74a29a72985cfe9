"""A pool that is global to the program, and a child that uses it."""

from __future__ import annotations

import os

from psycopg_pool import ConnectionPool

from tests.incidents.apps import DSN, GUARDED, log

pool = ConnectionPool(DSN, min_size=1, max_size=1, timeout=5, open=True)


def backend() -> int:
    with pool.connection() as conn:
        return conn.info.backend_pid


def main() -> None:
    log.write("parent before", backend=backend())
    child = os.fork()
    if child == 0:
        log.write("child", backend=backend())
        os._exit(0)
    os.waitpid(child, 0)
    log.write("parent after", backend=backend())


if __name__ == "__main__":
    if GUARDED:
        import lifeguard

        with lifeguard.worker(resources=[pool]):
            main()
    else:
        main()
        pool.close()
