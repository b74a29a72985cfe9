"""simonw/datasette#2890: at shutdown, what a stream still has to write comes too late.

The pull request brings an ordered shutdown, so that buffers are flushed while the database is
still there. Without an order the server tells the app to stop and its streams to end at the same
time, and the pool is closed before the streams are done with it.
"""

from __future__ import annotations

import socket

from lifeguard.testing import Postgres
from tests.incidents.serving import Sides


def test_incident_K09(sides: Sides, pg: Postgres, appname: str) -> None:
    """A stream outlives uvicorn's graceful timeout, is cancelled, and saves its progress.

    Bare, the pool is closed by then, and the progress is lost. Guarded, the pool is closed when
    the last unit has ended.
    """
    bare, guarded = sides.serve("uvicorn", "k09", "--timeout-graceful-shutdown", "1")
    for side in (bare, guarded):
        with socket.create_connection(("127.0.0.1", side.port), timeout=40) as client:
            client.sendall(b"GET /events HTTP/1.1\r\nHost: test\r\n\r\n")
            assert side.log.wait_count("streaming", 1) == 1, side.said()
            side.stop()

    (lost,) = bare.log.read("progress lost", "progress saved")
    assert (lost.event, lost["error"]) == ("progress lost", "PoolClosed"), bare.said()

    (saved,) = guarded.log.read("progress lost", "progress saved")
    assert saved.event == "progress saved", guarded.said()
    assert pg.wait_count(0, prefix=appname) == 0
