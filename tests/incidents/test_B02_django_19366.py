"""django/django#19366: a request that ends badly is one that never finished.

The handler sends ``request_finished`` behind what may raise instead of in a ``finally``. Whatever
is done at the end of a request, the closing of its connection first of all, is not done when the
server cancels it, or when its stream fails.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.incidents.serving import Process, Sides


def test_incident_B02(sides: Sides) -> None:
    """Bare, three of six endings on uvicorn finish: the good one, and two where the client leaves.

    Guarded, all of them do, those in a process that is being stopped included.
    """
    bare, guarded = sides.serve("uvicorn", "b02", "--timeout-graceful-shutdown", "1")

    for side in (bare, guarded):
        assert side.get("/").text == "ok"
        side.get_and_leave("/view", "in view")
        side.get_and_leave("/stream", "in stream")
        assert side.log.wait_count("finished", 3) == 3, side.said()

        with contextlib.suppress(httpx.HTTPError):
            side.get("/failing")
        stop_in_the_middle(side)
        assert side.log.count("started") == 6

    assert bare.log.count("finished") == 3
    assert guarded.log.wait_count("finished", 6) == 6


def stop_in_the_middle(side: Process) -> None:
    """Stop the server while a view and a stream run, for longer than it is ready to wait."""
    with ThreadPoolExecutor() as clients:
        for path, working in (("/view", "in view"), ("/stream", "in stream")):
            clients.submit(side.get, path)
            assert side.log.wait_count(working, 2) == 2, side.said()
        side.stop()
