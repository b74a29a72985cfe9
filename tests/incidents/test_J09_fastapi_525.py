"""fastapi/fastapi#525: after an error at startup the server goes on, and never sends shutdown.

An exception in the lifespan counts as "this app has none". The app is left running, half-started,
and is not told of the end either, so that what it had opened by then is never closed. (FastAPI's
own lifespan answers by the protocol today. An app that speaks ASGI itself is where it was.)
"""

from __future__ import annotations

from lifeguard.testing import Postgres
from tests.incidents.serving import Sides


def test_incident_J09(sides: Sides, pg: Postgres, appname: str) -> None:
    """The pool is opened, and then the first query of the startup fails.

    Bare, the server serves; at its end nothing closes the pool. Guarded, it does not start, says
    why, and has closed the pool.
    """
    bare, guarded = sides.start("uvicorn", "j09")

    bare.wait_until_listening()
    assert bare.get("/").text == "no prices"
    assert "appears unsupported" in bare.said()
    bare.stop()
    assert [event.event for event in bare.log.read()] == ["pool opened"]

    assert guarded.wait() != 0
    assert 'relation "prices" does not exist' in guarded.said()
    assert [event.event for event in guarded.log.read()] == ["pool opened", "pool closed"]
    assert pg.wait_count(0, prefix=appname) == 0
