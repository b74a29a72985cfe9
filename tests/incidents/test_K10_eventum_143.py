"""eventum-generator/eventum#143: a forced exit skips the app's shutdown.

Open streams kept uvicorn from stopping, so it was forced (a second Ctrl-C does the same). A
forced exit sends no ``lifespan.shutdown``: the lifespan's task is cancelled where it waits, and
nothing behind the ``yield`` runs.
"""

from __future__ import annotations

import signal
import socket

from lifeguard.testing import Postgres
from tests.incidents.serving import Sides


def test_incident_K10(sides: Sides, pg: Postgres, appname: str) -> None:
    """Two interrupts, the second while a request is in flight.

    Bare, the app's shutdown does not run. Guarded, it runs, after the request and while the pool
    is still open, and then the pool is closed.
    """
    bare, guarded = sides.serve("uvicorn", "k10")
    for side in (bare, guarded):
        with socket.create_connection(("127.0.0.1", side.port), timeout=40) as client:
            client.sendall(b"GET /slow HTTP/1.1\r\nHost: test\r\n\r\n")
            assert side.log.wait_count("working", 1) == 1, side.said()
            side.send(signal.SIGINT)
            side.wait_until_deaf()
            side.send(signal.SIGINT)
            side.wait()

    assert [event.event for event in bare.log.read()] == ["working"], bare.said()
    assert [event.event for event in guarded.log.read()] == ["working", "flushed and closed"]
    assert pg.wait_count(0, prefix=appname) == 0
