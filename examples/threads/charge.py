"""Charge orders in many threads on few connections: a script, no server.

Start it with ``python examples/run.py threads``, or on a PostgreSQL of your own::

    LIFEGUARD_DSN=postgresql://... python examples/threads/charge.py --threads 8
"""

from __future__ import annotations

import argparse
import logging
import os

from psycopg_pool import ConnectionPool

import lifeguard

pool = ConnectionPool(os.environ["LIFEGUARD_DSN"], open=False, min_size=1, max_size=4)
receipts: list[int] = []


def charge(order: int) -> int:
    """One job, one unit: before its result is out, what it borrowed is back."""
    lifeguard.callback(receipts.append, order)
    conn = pool.getconn()
    conn.execute("INSERT INTO charge VALUES (%s)", [order])
    conn.commit()
    if order % 50 == 0:
        raise ValueError(f"order {order} was charged before")  # and forgets its connection
    pool.putconn(conn)
    return order


def main(jobs: int, threads: int) -> None:
    with lifeguard.worker(resources=[pool]):  # the pool is open in here, and closed after
        with lifeguard.unit("set-up"), pool.connection() as conn:
            conn.execute("CREATE TABLE IF NOT EXISTS charge (number int)")
            conn.execute("TRUNCATE charge")

        with lifeguard.ThreadPoolExecutor(max_workers=threads) as executor:
            futures = [executor.submit(charge, order) for order in range(jobs)]
        failed = [future for future in futures if future.exception() is not None]

        with pool.connection() as conn:
            row = conn.execute("SELECT count(*) FROM charge").fetchone()
        assert row is not None
    print(f"{jobs} jobs: {row[0]} charged, {len(failed)} failed, {len(receipts)} receipts")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=200, help="how many orders to charge")
    parser.add_argument("--threads", type=int, default=8, help="how many threads")
    options = parser.parse_args()
    logging.basicConfig(format="%(name)s: %(message)s")
    main(options.jobs, options.threads)
