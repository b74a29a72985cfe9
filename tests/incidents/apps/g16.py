"""An RQ worker whose main process has asked the database, as its start-up does."""

from __future__ import annotations

import logging

from redis import Redis
from rq import Queue, Worker
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from tests.incidents.apps import GUARDED, REDIS, URL, log

JOBS = 4

engine = create_engine(URL)
redis = Redis.from_url(REDIS)


def job(number: int) -> None:
    with Session(engine) as session:
        log.write("job", number=number, backend=session.scalar(text("SELECT pg_backend_pid()")))


def check() -> None:
    with Session(engine) as session:
        log.write("check", backend=session.scalar(text("SELECT pg_backend_pid()")))


def work(worker_class: type[Worker]) -> None:
    queue = Queue("default", connection=redis)
    check()
    for number in range(JOBS):
        queue.enqueue(f"{__spec__.name}.job", number)
    worker_class([queue], connection=redis).work(burst=True, logging_level=logging.WARNING)
    check()


if __name__ == "__main__":
    import sys

    sys.modules[__spec__.name] = sys.modules["__main__"]  # jobs name the module, not __main__
    if GUARDED:
        import lifeguard
        import lifeguard.rq

        with lifeguard.worker(resources=[engine]):
            work(lifeguard.rq.Worker)
    else:
        work(Worker)
        engine.dispose()
