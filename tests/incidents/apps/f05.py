"""Two processes of ``multiprocessing`` that take turns with the connection they inherited."""

from __future__ import annotations

import multiprocessing

import psycopg
from psycopg_pool import ConnectionPool

from tests.incidents.apps import DSN, GUARDED, log

pool = ConnectionPool(DSN, min_size=1, max_size=1, timeout=5, open=True)
fork = multiprocessing.get_context("fork")
half_way, answered = fork.Event(), fork.Event()


def order() -> None:
    try:
        with pool.connection() as conn:
            transaction = conn.execute("SELECT pg_current_xact_id()::text").fetchone()[0]
            half_way.set()
            assert answered.wait(40)
            raise ValueError("out of stock")
    except ValueError:
        log.write("rolled back", transaction=transaction)


def report() -> None:
    assert half_way.wait(40)
    with pool.connection() as conn:
        conn.execute("SELECT 1")
    answered.set()


def main() -> None:
    with pool.connection() as conn:
        conn.execute("SELECT 1")
    processes = [fork.Process(target=order), fork.Process(target=report)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    (event,) = log.read("rolled back")
    with psycopg.connect(DSN) as conn:
        row = conn.execute("SELECT pg_xact_status(%s::xid8)", [event["transaction"]]).fetchone()
    log.write("transaction", status=row[0])


if __name__ == "__main__":
    if GUARDED:
        import lifeguard

        with lifeguard.worker(resources=[pool]):
            main()
    else:
        main()
        pool.close()
