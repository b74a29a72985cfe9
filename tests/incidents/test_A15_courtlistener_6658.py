"""freelawproject/courtlistener#6658: CONN_MAX_AGE is nailed to 0, because the site is on ASGI.

It is the advice of Django's documentation, and it holds: nothing is left behind. The price is a
connection for each request, with its handshake.
"""

from __future__ import annotations

from lifeguard.testing import Postgres
from tests.incidents.serving import Sides

REQUESTS = 12
LANES = 2  # of apps/persistent.py


def test_incident_A15(sides: Sides, pg: Postgres, appname: str) -> None:
    """Bare, twelve requests, one after another, open twelve connections.

    Guarded, the site may say 60 again: two lanes open two at most.
    """
    bare, guarded = sides.serve("uvicorn", "a15")

    backends = {bare.get("/").text for _ in range(REQUESTS)}
    assert len(backends) == REQUESTS
    assert pg.wait_count(0, prefix=appname) == 0

    backends = {guarded.get("/").text for _ in range(REQUESTS)}
    assert len(backends) <= LANES
    guarded.stop()
    assert pg.wait_count(0, prefix=appname) == 0
