"""A Dramatiq worker that downloads contracts: it looks whether it should, and does."""

from __future__ import annotations

import os
import threading

import dramatiq
import psycopg
from dramatiq.brokers.redis import RedisBroker
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool, PoolTimeout

from tests.incidents.apps import DSN, GUARDED, REDIS, log

THREADS = 3
NAME = f"{conninfo_to_dict(DSN)['application_name']}{os.environ['INCIDENT_SIDE']}"

pool = ConnectionPool(
    DSN, min_size=2, max_size=2, timeout=1, open=False, kwargs={"application_name": NAME}
)
broker = RedisBroker(url=REDIS)
dramatiq.set_broker(broker)
downloads, downloaded = threading.Semaphore(0), threading.Event()

if GUARDED:
    import lifeguard
    import lifeguard.dramatiq

    broker.add_middleware(lifeguard.dramatiq.Middleware())


class Session:
    """As an ORM's: it has a connection, and a transaction, from its first query to its close()."""

    conn: psycopg.Connection | None = None

    def scalar(self, query: str):
        self.conn = self.conn or pool.getconn()
        return self.conn.execute(query).fetchone()[0]

    def close(self) -> None:
        if self.conn is not None:
            pool.putconn(self.conn)
            self.conn = None


@dramatiq.actor(max_retries=0)
def decode(number: int) -> None:
    session = Session()
    try:
        if session.scalar("SELECT NOT EXISTS (SELECT FROM pg_class WHERE relname = 'abi')"):
            if GUARDED:
                lifeguard.release()
                session = Session()
            download()
        log.write("decoded", result=session.scalar("SELECT 1"))
    except PoolTimeout:
        log.write("no connection")
        downloads.release()
    finally:
        session.close()


def download() -> None:
    downloads.release()
    downloaded.wait(timeout=15)


startup = Session()


def initialize() -> int:
    """The startup asks, too. Nobody closes its session."""
    return startup.scalar("SELECT 1")


if GUARDED:
    initialize = lifeguard.task(initialize)


def idle_in_transaction() -> int:
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
        " AND state = 'idle in transaction'"
    )
    with psycopg.connect(DSN, autocommit=True) as conn:
        return conn.execute(query, [NAME]).fetchone()[0]


def main() -> None:
    initialize()
    log.write("started", idle=idle_in_transaction())
    worker = dramatiq.Worker(broker, worker_threads=THREADS)
    worker.start()
    for number in range(THREADS):
        decode.send(number)
    for _ in range(THREADS):
        downloads.acquire(timeout=15)
    log.write("downloading", idle=idle_in_transaction())
    downloaded.set()
    log.wait(lambda events: len(events) == THREADS, "decoded", "no connection")
    worker.stop()


if __name__ == "__main__":
    if GUARDED:
        with lifeguard.worker(resources=[pool]):
            main()
    else:
        with pool:
            main()
