"""Kludex/starlette#649: a mounted sub-app is never told that the server starts or stops.

Only the outermost app gets the lifespan. What a sub-app opens in its own (an MCP server's session
manager, a pool) stays closed, and its first request fails; open since 2019.
"""

from __future__ import annotations

from tests.incidents.serving import Sides


def test_incident_J03(sides: Sides) -> None:
    """Bare, the sub-app's pool is not open at the first request.

    Guarded, with ``@lifeguard.lifespan(mounts=True)``, it is opened once before the first request
    and closed once at the end, inside of the main app's own lifespan.
    """
    bare, guarded = sides.serve("uvicorn", "j03")

    assert bare.get("/tools/").text == "PoolClosed"
    bare.stop()
    assert [event.event for event in bare.log.read()] == ["main started", "main stopped"]

    assert guarded.get("/tools/").text == "ok"
    guarded.stop()
    assert [event.event for event in guarded.log.read()] == [
        "main started",
        "pool opened",
        "pool closed",
        "main stopped",
    ]
