"""A taskiq worker with async tasks, and sync ones, which it runs in threads or in processes."""

from __future__ import annotations

import os

from taskiq_redis import ListQueueBroker

import lifeguard
from tests.queues.apps import jobs
from tests.queues.apps.jobs import BARE, BROKER, QUEUE

# redis 8 gives up reading after some seconds, and the worker with it.
broker = ListQueueBroker(BROKER, queue_name=QUEUE, socket_timeout=None)
MODE = os.environ.get("APP_MODE", "task")
task = jobs.task if MODE == "task" else lambda func: func

if not BARE and MODE == "middleware":
    import lifeguard.taskiq

    lifeguard.taskiq.install(broker)


@broker.task("select")
@task
async def select(n: int) -> int:
    return await jobs.select(n)


@broker.task("select_sync")
@task
def select_sync(n: int) -> int:
    return jobs.select_sync(n)


@broker.task("keep")
@task
async def keep(how: str) -> None:
    await jobs.keep(how)


@broker.task("keep_sync")
@task
def keep_sync(how: str) -> None:
    jobs.keep_sync(how)
