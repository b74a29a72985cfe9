"""A pool of processes whose initializer begins with fresh connections, as one is told to."""

from __future__ import annotations

import multiprocessing

import psycopg
from psycopg_pool import ConnectionPool

from tests.incidents.apps import DSN, GUARDED, log


def make_pool() -> ConnectionPool:
    return ConnectionPool(DSN, min_size=1, max_size=1, timeout=5, open=True)


pool = make_pool()


def initializer() -> None:
    global pool
    pool.close()
    pool = make_pool()


def run_in_process(number: int) -> int:
    with pool.connection() as conn:
        return conn.execute("SELECT %s::int", [number]).fetchone()[0]


def main() -> None:
    log.write("before", answer=run_in_process(1))
    with multiprocessing.get_context("fork").Pool(2, initializer=initializer) as processes:
        log.write("processes", answers=processes.map(run_in_process, range(4)))
        processes.close()
        processes.join()
    try:
        log.write("after", answer=run_in_process(2))
    except psycopg.OperationalError as exc:
        log.write("after", error=str(exc))


if __name__ == "__main__":
    if GUARDED:
        import lifeguard

        with lifeguard.worker(resources=[pool]):
            main()
    else:
        main()
        pool.close()
