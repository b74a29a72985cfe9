"""``rq_worker Worker|SimpleWorker|SpawnWorker [burst]``: a worker of RQ.

With ``APP_PARENT`` its parent has used Django's connection and the pool before it forks, and
uses the connection again at its end.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import redis
import rq

from tests.queues.apps import bodies, jobs


def worker(kind: str) -> Any:
    classes: Any = rq
    if not jobs.BARE:
        import lifeguard.rq

        classes = lifeguard.rq
    connection = redis.Redis.from_url(jobs.BROKER)
    return getattr(classes, kind)([jobs.QUEUE], connection=connection)


def ask() -> None:
    if "APP_PARENT" in os.environ:
        bodies.query(-1)


def main(kind: str, *how: str) -> None:
    if "APP_PARENT" in os.environ and not jobs.BARE:
        import lifeguard

        with lifeguard.unit():
            jobs.select_sync(-1)
    ask()
    made = worker(kind)
    jobs.LOG.write("ready")
    made.work(burst="burst" in how, logging_level="INFO")
    ask()
    jobs.LOG.write("over")


if __name__ == "__main__":
    main(*sys.argv[1:])
