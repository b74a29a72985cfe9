"""PrefectHQ/fastmcp#4927: the teardown runs on Ctrl-C, and not on SIGTERM.

A program opens its resources around ``server.serve()``. uvicorn shuts down in order when it gets
a SIGTERM, and sends itself the signal once more when it is done. By then nobody handles it, and
the process is gone before the block around the server is left. Containers are stopped by SIGTERM.
"""

from __future__ import annotations

import signal

from lifeguard.testing import Postgres
from tests.incidents.serving import Sides


def test_incident_K21(sides: Sides, pg: Postgres, appname: str) -> None:
    """Bare, nothing behind the block runs. Guarded, it does, and can still use the pool.

    What the process is seen to have died of stays the same.
    """
    bare, guarded = sides.start("script", "k21")
    for side in (bare, guarded):
        side.wait_until_listening()
        assert side.get("/").text == "ok"
        assert side.stop() == -signal.SIGTERM

    assert [event.event for event in bare.log.read()] == ["startup"], bare.said()
    assert [event.event for event in guarded.log.read()] == ["startup", "shutdown"], guarded.said()
    assert pg.wait_count(0, prefix=appname) == 0
