"""An arq worker. Its jobs are in ``APP_JOBS``, and it sends them to itself as it starts."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

from arq.connections import RedisSettings
from arq.worker import Retry, func

from tests.queues.apps import jobs
from tests.queues.apps.jobs import LOG, QUEUE, task, where


@task
async def select(ctx: dict[str, Any], n: int) -> int:
    return await jobs.select(n)


@task
async def keep(ctx: dict[str, Any], how: str) -> None:
    await jobs.keep(how)
    if how == "retries" and ctx["job_try"] == 1:
        raise Retry(defer=0)


@task
async def thread(ctx: dict[str, Any]) -> None:
    """A job that works in a thread of the loop's executor."""

    def inner() -> None:
        jobs.unit_ended("thread ended")
        LOG.write("thread", **where())

    await asyncio.to_thread(inner)


async def on_startup(ctx: dict[str, Any]) -> None:
    for name, *args in json.loads(os.environ["APP_JOBS"]):
        await ctx["redis"].enqueue_job(name, *args, _queue_name=QUEUE)
    LOG.write("started", **where())


async def on_job_end(ctx: dict[str, Any]) -> None:
    """A hook of somebody's that takes its time, where the test wants it."""
    if "APP_SLOW_HOOK" in os.environ:
        LOG.write("hook")
        await asyncio.Event().wait()


async def on_shutdown(ctx: dict[str, Any]) -> None:
    if jobs.BARE and jobs._async_pool is not None:  # where arq's documentation puts it
        await jobs._async_pool.close()
        LOG.write("closed", kind="async", **where())


class WorkerSettings:
    functions = [select, keep, func(keep, name="keep a while", timeout=3), thread]
    queue_name = QUEUE
    redis_settings = RedisSettings.from_dsn(jobs.BROKER)
    max_jobs = 4
    poll_delay = 0.05
    keep_result = 0
    on_startup = on_startup
    on_job_end = on_job_end
    on_shutdown = on_shutdown
