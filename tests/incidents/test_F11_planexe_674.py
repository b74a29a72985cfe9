"""PlanExeOrg/PlanExe#674: one user's rows are delivered to another user.

Forked siblings inherited one PostgreSQL connection and spoke on it at the same time. Production
saw the protocol break down; the authors point out that before it does, whoever reads first gets
the other's rows: a privacy hazard.
"""

from __future__ import annotations

import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor

import httpx

from lifeguard.testing import Postgres
from tests.incidents.queries import wait_until_blocked
from tests.incidents.serving import Process, Sides


def test_incident_F11(sides: Sides, pg: Postgres) -> None:
    """Bare, Bob is told Alice's row, with a status of 200. Guarded, each gets their own.

    Alice's query waits in the server (for a lock that the test holds), and her worker is not
    scheduled for a while; Bob asks the other worker meanwhile. Nothing else is arranged.
    """
    bare, guarded = sides.serve("gunicorn", "f11", "--preload", "--workers", "2")

    _, bob = alice_and_bob(bare, pg, patience=20)
    assert bob == "row of alice"

    assert alice_and_bob(guarded, pg, patience=60) == ("row of alice", "row of bob")


def alice_and_bob(process: Process, pg: Postgres, patience: float) -> tuple[str, str]:
    key = random.getrandbits(62)
    with pg.connect() as lock, ThreadPoolExecutor() as clients:
        lock.execute("SELECT pg_advisory_lock(%s)", [key])
        alice = clients.submit(ask, process, f"/?user=alice&wait={key}", patience)
        wait_until_blocked(pg, key)
        (serving,) = process.log.read("serving")
        worker = serving["worker"]
        os.kill(worker, signal.SIGSTOP)
        try:
            bob = clients.submit(ask, process, "/?user=bob", patience)
            assert process.log.wait_count("serving", 2) == 2, process.said()
            lock.execute("SELECT pg_advisory_unlock(%s)", [key])
            for_bob = bob.result()
        finally:
            os.kill(worker, signal.SIGCONT)
        return alice.result(), for_bob


def ask(process: Process, path: str, patience: float) -> str:
    try:
        return process.get(path, timeout=patience).text
    except httpx.HTTPError as exc:
        return type(exc).__name__
