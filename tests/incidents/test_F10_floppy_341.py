"""dannyvfilms/Floppy#341: the app answers for hours, and then every page is a 504.

The pool had been opened in gunicorn's master and inherited by workers with four threads each. One
request at a time is served by the connections that were there; the threads that would open more
are the master's. Raising ``max_size`` was tried first, and does nothing.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

from lifeguard.testing import Postgres
from tests.incidents.serving import Process, Sides


def test_incident_F10(sides: Sides, pg: Postgres) -> None:
    """A slow page is being made, and somebody else asks for another one.

    Bare, the pool of five has one connection to give, and the visitor waits for the timeout.
    Guarded, each worker has a pool of its own, which opens a second.
    """
    options = ["--preload", "--worker-class", "gthread", "--threads", "4"]
    bare, guarded = sides.serve("gunicorn", "f10", *options)
    assert meanwhile(bare, pg) == "couldn't get a connection after 3.00 sec"
    assert meanwhile(guarded, pg) == "ok"


def meanwhile(process: Process, pg: Postgres) -> str:
    """What the visitor is told."""
    key = random.getrandbits(62)
    with pg.connect() as lock, ThreadPoolExecutor() as clients:
        lock.execute("SELECT pg_advisory_lock(%s)", [key])
        slow = clients.submit(process.get, f"/?wait={key}")
        assert process.log.wait_count("slow", 1) == 1, process.said()
        answer = process.get("/").text
        lock.execute("SELECT pg_advisory_unlock(%s)", [key])
        assert slow.result().text == "ok"
    return answer
