"""cookiecutter/cookiecutter-django#5071: "remaining connection slots are reserved", since Channels.

The generated project says CONN_MAX_AGE=60, and runs on ASGI. There each request has a thread of its
own, so that no connection is ever used again and none is closed; and as many requests as come at
once want a connection each. The database is full, and Celery's tasks fail of it as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from websockets.asyncio.client import ClientConnection, connect

from lifeguard.testing import postgres
from tests.incidents.seeds.deploying import (
    Answer,
    Client,
    Database,
    asking,
    at_a_time,
    database,
    deployed,
    failed,
    failures,
)
from tests.support.redis import redis

SETTINGS = "tests.incidents.seeds.cookiecutter.settings"
WORKERS, LANES, SLOTS, TABS = 2, 8, 30, 40
WEB = (
    "gunicorn tests.incidents.seeds.cookiecutter.asgi:application --bind 127.0.0.1:{port}"
    f" --workers {WORKERS} --worker-class uvicorn_worker.UvicornWorker --no-control-socket"
)
CELERY = (
    "celery --app tests.incidents.seeds.cookiecutter.celery_app worker --pool prefork"
    " --concurrency 4 --loglevel info --without-gossip --without-mingle"
)

FULL = "remaining connection slots are reserved"


@dataclass
class Visit:
    """What the clients of a deployment were told."""

    many: list[Answer]
    few: list[Answer]
    tabs: list[str]


async def visit(port: int) -> Visit:
    """40 tabs, 400 requests 60 at a time, and 200 more 4 at a time beside visitors who hang up."""
    async with contextlib.AsyncExitStack() as stack:
        address = f"ws://localhost:{port}/ws/orders"
        tabs = [await stack.enter_async_context(connect(address)) for _ in range(TABS)]
        many = [asking("/order" if n % 4 == 0 else "/") for n in range(400)]
        few = [leave_and_ask if n % 4 == 0 else asking("/") for n in range(200)]
        return Visit(
            tabs=await asyncio.gather(*map(ask, tabs)),
            many=await at_a_time(60, many, port),
            few=await at_a_time(4, few, port),
        )


async def ask(tab: ClientConnection) -> str:
    await tab.send("how many?")
    return str(await tab.recv())


async def leave_and_ask(client: Client) -> Answer:
    await client.leave("/")
    return await client.get("/order")


@pytest.fixture
def db(monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """In a PostgreSQL with 30 connections, three of them reserved. No other one will do here."""
    monkeypatch.delenv("LIFEGUARD_DSN", raising=False)
    with postgres(max_connections=SLOTS) as pg, database(pg, "cookiecutter") as db:
        yield db


@pytest.mark.timeout(180)
def test_seed_cookiecutter(db: Database, tmp_path: Path) -> None:
    """Bare, hundreds of requests and some of the tasks fail: there is no connection left.

    Guarded, none fails, and the web workers have no more connections than lanes.
    """
    for guarded in (False, True):
        with (
            redis() as broker,
            deployed(SETTINGS, db, tmp_path, guarded=guarded, SEED_REDIS=broker) as side,
        ):
            side.manage("flush --no-input" if guarded else "migrate --run-syncdb --verbosity 0")
            celery = side.start(CELERY, SEED_NAME="celery")
            web = side.serve(WEB, workers=WORKERS)
            celery.wait_until(lambda: celery.has_said("ready."))
            with db.watched(without="celery") as peak:
                seen = asyncio.run(visit(web.port))
                orders = [answer for answer in seen.many + seen.few if b'"order"' in answer.body]
                sent = wait_until_sent(db, len(orders)) if guarded else 0
            if not guarded:
                assert failed(seen.many) > 200, web.said()
                assert failed(seen.few) > 0
                assert web.has_said(FULL), web.said()
                celery.wait_until(lambda: celery.has_said(FULL))
            else:
                assert failures(seen.many) == {}, web.said()
                assert failures(seen.few) == {}, web.said()
                assert seen.tabs == ["0"] * TABS
                assert sent == len(orders) == 150, celery.said()
                assert peak.connections <= WORKERS * LANES
                assert web.ends_within(20), web.said()
                assert db.wait_at_most(0, without="celery") == 0
        assert db.wait_at_most(0) == 0


def wait_until_sent(db: Database, orders: int, timeout: float = 30.0) -> int:
    """How many of the orders Celery has sent: all of them, or as many as in *timeout* seconds."""
    query = "SELECT count(*) FROM cookiecutter_order WHERE sent"
    deadline = time.monotonic() + timeout
    with psycopg.connect(db.dsn, autocommit=True, application_name="celery") as connection:
        while True:
            row = connection.execute(query).fetchone()
            assert row is not None
            if row[0] >= orders or time.monotonic() > deadline:
                return int(row[0])
            time.sleep(0.1)
