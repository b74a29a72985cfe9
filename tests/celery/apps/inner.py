"""Tasks that ask the database in other threads or loops than the task's own.

The garbage collector is off: without that, what a thread leaves behind stays until it comes by, and
when it does is nobody's to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.celery.apps.inner_site"

from asgiref.sync import async_to_sync, sync_to_async

from tests.celery.apps import BARE, NAME, celery_app, log, wait_at_gate

app = celery_app("inner")
gc.disable()

if not BARE:
    import lifeguard.celery

    lifeguard.celery.install(app)

INNER = 3
# What it was asked, and how many connections there are now: with those that have just been opened.
QUESTION = """
    SELECT %s::int, (SELECT count(*) FROM pg_stat_activity WHERE starts_with(application_name, %s))
"""


def ask(alias: str, number: int) -> int:
    from django.db import connections

    with connections[alias].cursor() as cursor:
        cursor.execute(QUESTION, [number, f"{NAME}.{alias}"])
        answer, there = cursor.fetchone()
    log.write("there", there=there, alias=alias)
    return int(answer)


def run(alias: str, number: int) -> list[int]:
    """``asyncio.run(sync_to_async(...))``, as people call the async API of a library."""
    return [asyncio.run(sync_to_async(ask)(alias, number))]


def to_sync(alias: str, number: int) -> list[int]:
    return [async_to_sync(sync_to_async(ask))(alias, number)]


def not_sensitive(alias: str, number: int) -> list[int]:
    async def main() -> list[int]:
        work = sync_to_async(ask, thread_sensitive=False)
        return await asyncio.gather(*(work(alias, number) for _ in range(INNER)))

    return asyncio.run(main())


def to_thread(alias: str, number: int) -> list[int]:
    async def main() -> list[int]:
        jobs = (asyncio.to_thread(ask, alias, number) for _ in range(INNER))
        return await asyncio.gather(*jobs)

    return asyncio.run(main())


def executor(alias: str, number: int) -> list[int]:
    with ThreadPoolExecutor(INNER) as threads:
        return list(threads.map(ask, [alias] * INNER, [number] * INNER))


_executor: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def global_executor(alias: str, number: int) -> list[int]:
    global _executor
    with _lock:
        if _executor is None:
            _executor = ThreadPoolExecutor(INNER)
    return list(_executor.map(ask, [alias] * INNER, [number] * INNER))


BODIES: dict[str, Callable[[str, int], list[int]]] = {
    body.__name__: body
    for body in (run, to_sync, not_sensitive, to_thread, executor, global_executor)
}


@app.task(name="inner")
def inner(body: str, alias: str, number: int) -> list[int]:
    return BODIES[body](alias, number)


@app.task(name="collect")
def collect(gate: str) -> None:
    """Throw away what earlier tasks have left in this child, and wait for the others."""
    from django.db import connections

    gc.collect()
    for connection in connections.all():
        with contextlib.suppress(KeyError):  # another thread was first
            connection.close_pool()
    log.write("collected", gate=gate)
    wait_at_gate(gate)
