"""Kludex/starlette#1438: a background task is cancelled because the client has hung up.

The response is complete, the client closes its connection, and what was to run after the
response is cancelled. Starlette's part (BaseHTTPMiddleware) is mended; gunicorn's ASGI worker
still does it, and the task takes its connection along.
"""

from __future__ import annotations

from tests.incidents.serving import Sides


def test_incident_D18(sides: Sides) -> None:
    """Bare, the connection of the cancelled background task is gone. Guarded, it is back."""
    options = ("--worker-class", "asgi", "--asgi-disconnect-grace-period", "0")
    for side in sides.serve("gunicorn", "d17", *options):
        assert side.get("/").text == "ok"
        side.get_and_leave("/order", when="working")
        assert side.log.wait_count("cancelled", 1) == 1, side.said()
        assert side.get("/").text == ("ok" if side.guarded else "PoolTimeout")
