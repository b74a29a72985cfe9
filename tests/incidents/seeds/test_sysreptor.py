"""Syslifters/sysreptor#201: "DB Too many clients already", and what became of it.

Its cure was Django's own connection pool, which made an outage of what had been a leak. The health
check starts housekeeping that outlives its request, and each round of it costs two connections: one
is taken out in a thread that asgiref makes for a request that is over, and one in the request's own
thread, after Django has closed what was there and before the thread ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from tests.incidents.seeds.deploying import (
    Answer,
    Client,
    Database,
    Process,
    asking,
    at_a_time,
    deployed,
    failed,
    failures,
)

WORKERS, POOL, TABS = 2, 4, 15
SERVER = (
    "gunicorn tests.incidents.seeds.sysreptor.asgi:application --bind 127.0.0.1:{port}"
    f" --workers {WORKERS} --worker-class uvicorn_worker.UvicornWorker --no-control-socket"
)
END_WITHIN = 20.0
CHECK = [asking("/healthcheck")]


@dataclass
class Visit:
    """What the clients of a deployment were told."""

    checks: list[Answer] = field(default_factory=list)
    polls: list[Answer] = field(default_factory=list)
    notes: list[Answer] = field(default_factory=list)


async def visit(port: int) -> Visit:
    """Health checks among tabs that poll, more of them alone, and requests when all is over."""
    seen = Visit()
    leave = asyncio.Event()

    async def tab() -> None:
        async with Client(port) as client:
            while not leave.is_set():
                seen.polls.append(await client.get("/poll"))

    async with asyncio.TaskGroup() as tabs:
        for _ in range(TABS):
            tabs.create_task(tab())
        for _ in range(3):
            seen.checks += await at_a_time(4, CHECK * 4, port)
        leave.set()

    checked: Counter[str] = Counter()
    answers = seen.checks
    while failed(answers) < len(answers) and (len(checked) < WORKERS or min(checked.values()) < 5):
        await wait_until_idle(port)
        answers = await at_a_time(8, CHECK * 8, port)
        seen.checks += answers
        checked.update(answer.headers["x-worker"] for answer in answers if answer.status == 200)
        assert len(seen.checks) < 200, checked
    await wait_until_idle(port)
    seen.notes = await at_a_time(8, [asking("/notes")] * 16, port)
    return seen


async def wait_until_idle(port: int) -> None:
    """Until no worker has housekeeping left to do."""
    deadline = time.monotonic() + 30
    while True:
        answers = await at_a_time(8, [asking("/idle")] * 8, port)
        if {answer.body for answer in answers} == {b'{"running": 0}'}:
            return
        assert time.monotonic() < deadline, answers
        await asyncio.sleep(0.1)


async def stop(server: Process) -> bool:
    """Whether the server ends in time, with tabs and housekeeping in the middle of their work."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(TABS):
            client = await stack.enter_async_context(Client(server.port))
            await client.send("/poll")
        await at_a_time(2, CHECK * 2, server.port)
        return await asyncio.to_thread(server.ends_within, END_WITHIN)


@pytest.mark.timeout(180)
def test_seed_sysreptor(db: Database, tmp_path: Path) -> None:
    """Bare, two health checks cost a worker its whole pool, and nobody is served by it any more.

    Guarded, every request is answered, the housekeeping is done, and at the end nothing is left.
    """
    for guarded in (False, True):
        settings = "tests.incidents.seeds.sysreptor.settings"
        with deployed(settings, db, tmp_path, guarded=guarded) as side:
            if not guarded:
                side.manage("migrate --run-syncdb --verbosity 0")
            server = side.serve(SERVER, workers=WORKERS)
            with db.watched() as peak:
                seen = asyncio.run(visit(server.port))
            ended = asyncio.run(stop(server))

            if not guarded:
                assert failed(seen.notes) > 0, "both pools are alive"
                continue
            assert failures(seen.checks) == {}, server.said()
            assert failures(seen.polls) == {}, server.said()
            assert failures(seen.notes) == {}, server.said()
            assert peak.connections <= WORKERS * POOL
            assert ended, server.said()
            assert db.wait_at_most(0) == 0, server.said()
            with psycopg.connect(db.dsn) as connection:
                query = "SELECT count(completed) FROM sysreptor_periodictask"
                assert connection.execute(query).fetchone() == (3,)
