"""A program that ends, and has not closed its pool."""

from __future__ import annotations

from psycopg_pool import ConnectionPool

from tests.incidents.apps import DSN, GUARDED, log

pool = ConnectionPool(DSN, min_size=1, num_workers=1)


def main() -> None:
    with pool.connection() as conn:
        conn.execute("SELECT 1")


if __name__ == "__main__":
    if GUARDED:
        import lifeguard

        with lifeguard.worker(resources=[pool]):
            main()
    else:
        main()
    log.write("done")
