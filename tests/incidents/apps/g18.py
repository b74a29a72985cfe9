"""A Dramatiq worker that downloads contracts: it looks whether it should, and does."""

from __future__ import annotations

import threading

import dramatiq
import psycopg
from dramatiq.brokers.redis import RedisBroker
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from tests.incidents.apps import DSN, GUARDED, PATIENCE, REDIS, URL, log

THREADS = 3
NAME = f"{conninfo_to_dict(DSN)['application_name']}{'guarded' if GUARDED else 'bare'}"

engine = create_engine(
    URL, pool_size=2, max_overflow=0, pool_timeout=PATIENCE, connect_args={"application_name": NAME}
)
broker = RedisBroker(url=REDIS)
dramatiq.set_broker(broker)
downloads, downloaded = threading.Semaphore(0), threading.Event()

if GUARDED:
    import lifeguard
    import lifeguard.dramatiq

    broker.add_middleware(lifeguard.dramatiq.Middleware())


@dramatiq.actor(max_retries=0)
def decode(number: int) -> None:
    try:
        with Session(engine) as session:
            if should_attempt_download(session):
                if GUARDED:
                    lifeguard.release()
                download()
        with Session(engine) as session:
            log.write("decoded", result=session.scalar(text("SELECT 1")))
    except PoolTimeout:
        log.write("no connection")
        downloads.release()


def should_attempt_download(session: Session) -> bool:
    return session.scalar(text("SELECT NOT EXISTS (SELECT FROM pg_class WHERE relname = 'abi')"))


def download() -> None:
    downloads.release()
    downloaded.wait(timeout=40)


startup = Session(engine)


def initialize() -> int:
    """The startup asks, too. Nobody closes its session."""
    return startup.scalar(text("SELECT 1"))


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
        downloads.acquire(timeout=40)
    log.write("downloading", idle=idle_in_transaction())
    downloaded.set()
    log.wait(lambda events: len(events) == THREADS, "decoded", "no connection")
    worker.stop()


if __name__ == "__main__":
    if GUARDED:
        with lifeguard.worker(resources=[engine]):
            main()
    else:
        main()
        engine.dispose()
