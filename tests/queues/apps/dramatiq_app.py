"""A broker of Dramatiq and its actors.

``APP_FIRST`` adds lifeguard's middleware before AsyncIO; ``APP_NO_LOOP`` does without that.
"""

from __future__ import annotations

import os
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO, Middleware, Retries, ShutdownNotifications, TimeLimit

from tests.queues.apps import bodies, jobs
from tests.queues.apps.jobs import BARE, LOG


class Say(Middleware):
    """Tells the test what Dramatiq is about to do."""

    def after_worker_boot(self, broker: Any, worker: Any) -> None:
        LOG.write("ready")

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: Any = None
    ) -> None:
        LOG.write("processed", failed=exception is not None)


middleware: list[Any] = [] if "APP_NO_LOOP" in os.environ else [AsyncIO()]
if not BARE:
    import lifeguard.dramatiq

    middleware.insert(0 if "APP_FIRST" in os.environ else 1, lifeguard.dramatiq.Middleware())

broker = RedisBroker(
    url=jobs.BROKER,
    namespace=jobs.QUEUE,
    middleware=[
        Say(),
        Retries(max_retries=0),
        TimeLimit(interval=50),
        ShutdownNotifications(notify_shutdown=True),
        *middleware,
    ],
)
dramatiq.set_broker(broker)

query = dramatiq.actor(bodies.query, actor_name="query")
fail = dramatiq.actor(bodies.fail, actor_name="fail")
keep = dramatiq.actor(jobs.keep_sync, actor_name="keep")
late = dramatiq.actor(bodies.hang, actor_name="late")
hang = dramatiq.actor(bodies.hang, actor_name="hang")

# On Dramatiq's event loop, where the async pool is open.
select = dramatiq.actor(jobs.select, actor_name="select")
akeep = dramatiq.actor(jobs.keep, actor_name="akeep")
