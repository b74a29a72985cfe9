"""A program that forks in the middle of a transaction, as one does that starts a helper."""

from __future__ import annotations

import os
import sys

from psycopg_pool import ConnectionPool

from tests.incidents.apps import DSN, GUARDED, log

pool = ConnectionPool(DSN, min_size=1, max_size=1, timeout=5, open=True)


def main() -> None:
    with pool.connection() as conn:
        transaction = conn.execute("SELECT pg_current_xact_id()::text").fetchone()[0]
        child = os.fork()
        if child == 0:
            sys.exit(0)  # and leaves the block above, with an exception
        os.waitpid(child, 0)
    log.write("no error")
    with pool.connection() as conn:
        status = conn.execute("SELECT pg_xact_status(%s::xid8)", [transaction]).fetchone()[0]
    log.write("transaction", status=status)


if __name__ == "__main__":
    if GUARDED:
        import lifeguard

        with lifeguard.worker(resources=[pool]):
            main()
    else:
        main()
        pool.close()
