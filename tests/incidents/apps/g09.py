"""A procrastinate worker: sync tasks that use Django, each in a thread of the loop's executor."""

from __future__ import annotations

import asyncio
import threading

import procrastinate
from procrastinate import PsycopgConnector

from tests.incidents.apps import DSN, GUARDED, log
from tests.incidents.apps.django_left import left
from tests.incidents.apps.django_site import configure

TASKS = 4

configure(__name__)
urlpatterns: list[object] = []

from django.db import connection  # noqa: E402

app = procrastinate.App(connector=PsycopgConnector(conninfo=DSN))
together = threading.Barrier(TASKS)  # each thread gets a task


def order(number: int) -> None:
    together.wait(timeout=40)
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s + 1", [number])
        log.write("ordered", result=cursor.fetchone()[0])


if GUARDED:
    import lifeguard

    order = lifeguard.task(order)

order = app.task(order, name="order")


async def main() -> None:
    async with app.open_async():
        if not await app.check_connection_async():
            await app.schema_manager.apply_schema_async()
        for number in range(TASKS):
            await order.defer_async(number=number)
        await app.run_worker_async(wait=False, concurrency=TASKS, listen_notify=False)
        log.write("done", left=await asyncio.to_thread(left))


if __name__ == "__main__":
    asyncio.run(main())
