"""Huey with its plain decorator over ``@lifeguard.task``: nothing of lifeguard knows of Huey."""

from __future__ import annotations

from huey import RedisHuey

from tests.queues.apps import bodies, jobs
from tests.queues.apps.jobs import LOG, task

huey = RedisHuey(jobs.QUEUE, url=jobs.BROKER)

query = huey.task(name="query")(task(bodies.query))
fail = huey.task(name="fail")(task(bodies.fail))
select = huey.task(name="select")(task(jobs.select_sync))
keep = huey.task(name="keep")(task(jobs.keep_sync))
hang = huey.task(name="hang")(task(bodies.hang))
late = huey.task(name="late", timeout=30)(task(bodies.hang))


@huey.on_startup()
def ready() -> None:
    LOG.write("ready")


@huey.signal("complete", "error", "timeout", "interrupted")
def processed(signal: str, task: object, exc: Exception | None = None) -> None:
    LOG.write("processed", signal=signal)
