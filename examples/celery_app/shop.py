"""A shop's tasks, on Celery: sync and async ones, with a pool of each kind in each child.

``python examples/run.py celery_app`` starts a worker and sends it a day's orders. By hand::

    export LIFEGUARD_DSN=postgresql://... SHOP_BROKER=redis://127.0.0.1:6379/0
    celery --workdir examples/celery_app -A shop worker --concurrency 4
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

from broker import settings
from celery import Celery, Task
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool, ConnectionPool

import lifeguard.celery

DSN = os.environ["LIFEGUARD_DSN"]
NAME = conninfo_to_dict(DSN).get("application_name") or "shop"

app = Celery("shop")
app.conf.update(settings(os.environ["SHOP_BROKER"]), task_default_queue="lifeguard-shop")


def connections(most: int) -> dict[str, Any]:
    """At most so many, and PostgreSQL is told which child has them."""
    name = {"application_name": f"{NAME}:{os.getpid()}"}
    return {"open": False, "min_size": 1, "max_size": most, "kwargs": name}


@lifeguard.resource
def db() -> Iterator[ConnectionPool]:
    """A child runs one task at a time, so one connection is enough."""
    with ConnectionPool(DSN, **connections(1)) as pool:
        yield pool


@lifeguard.resource
async def adb() -> AsyncIterator[AsyncConnectionPool]:
    """For async tasks, which do several things at once."""
    async with AsyncConnectionPool(DSN, **connections(2)) as pool:
        yield pool


class AlreadyCharged(Exception):
    """This order was paid before."""


@app.task(throws=(AlreadyCharged,))
@lifeguard.task
def charge(order: int) -> int:
    """How not to do it: the exception forgets the connection, the only one of this child."""
    conn = db.get().getconn()
    conn.execute("INSERT INTO shop_order (number) VALUES (%s)", [order])
    if order % 10 == 0:
        raise AlreadyCharged(order)  # lifeguard takes it back, and says where it was borrowed
    conn.commit()
    db.get().putconn(conn)
    return os.getpid()


@app.task(bind=True)
@lifeguard.task
def ship(self: Task, order: int) -> int:
    """The lorry is never there the first time. A retry is a unit of its own."""
    with db.get().connection() as conn:
        conn.execute("UPDATE shop_order SET tries = tries + 1 WHERE number = %s", [order])
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    return os.getpid()


@app.task
@lifeguard.celery.task
async def report(orders: list[int]) -> list[int]:
    """Async: it runs on this child's own event loop, where ``adb`` is open."""

    async def tries(order: int) -> int:
        async with adb.get().connection() as conn:
            query = "SELECT tries FROM shop_order WHERE number = %s"
            row = await (await conn.execute(query, [order])).fetchone()
        return 0 if row is None else int(row[0])

    return await asyncio.gather(*map(tries, orders))
