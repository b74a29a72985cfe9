"""A worker class made with the mixin: with a guard and a resource of its own."""

from __future__ import annotations

import os

import redis
import rq

import lifeguard.rq
from tests.support.eventlog import EventLog

LOG = EventLog.from_env()
GUARD = lifeguard.Lifeguard()


class Noted:
    def __enter__(self) -> None:
        LOG.write("opened")

    def __exit__(self, *exc_info: object) -> None:
        LOG.write("closed")


class Worker(lifeguard.rq.WorkerMixin, rq.SimpleWorker):
    guard = GUARD
    resources = [Noted()]


def see() -> None:
    LOG.write("seen", in_unit=GUARD.current.get() is not None)


def main() -> None:
    connection = redis.Redis.from_url(os.environ["APP_BROKER"])
    Worker([os.environ["APP_QUEUE"]], connection=connection).work(burst=True)
