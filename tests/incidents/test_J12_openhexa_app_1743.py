"""BLSQ/openhexa-app#1743: the lifespan is switched off, because Django does not support it.

Django raises at the sight of the lifespan scope. The error tracker fills up, or the server does
not start at all; the usual answer is ``--lifespan off``, and with it goes the place where a pool
would be opened and closed.
"""

from __future__ import annotations

from lifeguard.testing import Postgres
from tests.incidents.serving import Sides


def test_incident_J12(sides: Sides, pg: Postgres, appname: str) -> None:
    """Bare, ``uvicorn --lifespan on`` refuses to serve a Django app.

    Guarded, it starts; the pool is open before the first request, and closed once at the end.
    """
    bare, guarded = sides.start("uvicorn", "j12", "--lifespan", "on")

    assert bare.wait() != 0
    assert "Django can only handle ASGI/HTTP connections, not lifespan" in bare.said()

    guarded.wait_until_listening()
    assert [event.event for event in guarded.log.read()] == ["pool opened"]
    assert guarded.get("/").text == "ok"
    guarded.stop()
    assert [event.event for event in guarded.log.read()] == ["pool opened", "pool closed"]
    assert pg.wait_count(0, prefix=appname) == 0
