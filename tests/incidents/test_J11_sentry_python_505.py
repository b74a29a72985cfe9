"""getsentry/sentry-python#505: a middleware breaks the lifespan of the app inside.

An ASGI middleware treated the lifespan as one more request and failed on it. The server logged
that the lifespan "appears unsupported" and went on; nothing that the app opens at startup was
open.
"""

from __future__ import annotations

from tests.incidents.serving import Sides


def test_incident_J11(sides: Sides) -> None:
    """Bare, the pool is closed and requests fail.

    Guarded, lifeguard stands outside of the broken middleware and opens the pool itself, once,
    and the server sees a lifespan that is complete.
    """
    bare, guarded = sides.serve("uvicorn", "j11")

    assert bare.get("/").text == "PoolClosed"
    assert "appears unsupported" in bare.said()

    assert guarded.get("/").text == "ok"
    assert "appears unsupported" not in guarded.said()
    guarded.stop()
    assert "Application shutdown complete" in guarded.said()
    assert guarded.log.count("traced") == 1
