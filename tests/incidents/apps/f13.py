"""An import of many files, by a pool of processes."""

from __future__ import annotations

import multiprocessing
import os

from psycopg_pool import ConnectionPool

from tests.incidents.apps import DSN, GUARDED, log

pool = ConnectionPool(DSN, min_size=1, max_size=1, timeout=5, open=True)
fork = multiprocessing.get_context("fork")
all_are_there = fork.Barrier(2)
turn = fork.Lock()


def preprocess(file: str) -> None:
    all_are_there.wait(20)
    with turn:
        try:
            with pool.connection() as conn:
                conn.execute("SELECT %s::text", [file])
            log.write("imported", worker=os.getpid())
        except Exception as exc:
            log.write("failed", error=str(exc))


def main() -> None:
    with pool.connection() as conn:
        conn.execute("SELECT 'which files are there already?'")
    with fork.Pool(2) as processes:
        processes.map(preprocess, ["april.nc", "may.nc"], chunksize=1)
        processes.close()
        processes.join()


if __name__ == "__main__":
    if GUARDED:
        import lifeguard

        with lifeguard.worker(resources=[pool]):
            main()
    else:
        main()
        pool.close()
