"""django/django#17553: persistent connections stopped working under ASGI, and nothing says so.

Under ASGI each request has a thread of its own. CONN_MAX_AGE keeps the connection for the next
request of that thread, and there is none. The reporter asks for a warning.
"""

from __future__ import annotations

import re

from lifeguard.testing import Postgres
from tests.incidents.serving import Sides

REQUESTS = 12
LANES = 2  # of apps/persistent.py


def test_incident_A01(sides: Sides, pg: Postgres, appname: str) -> None:
    """Bare, ``check --deploy`` finds nothing about it, and each request leaves a connection behind.

    With lifeguard installed and the app not wrapped yet, the check says it. Wrapped, the requests
    share the connections of the lanes, and these are kept.
    """
    bare, guarded = sides.run("a01_check")
    assert "System check identified" in bare.said()
    assert "CONN_MAX_AGE" not in bare.said()
    assert re.findall(r"\((lifeguard\.W\d+)\)", guarded.said()) == [
        "lifeguard.W001",
        "lifeguard.W002",
    ]
    assert "DATABASES['default'] has CONN_MAX_AGE = 60 under ASGI" in guarded.said()

    bare, guarded = sides.serve("uvicorn", "a01")
    backends = {bare.get("/").text for _ in range(REQUESTS)}
    assert len(backends) == REQUESTS
    assert pg.wait_count(REQUESTS, prefix=appname) == REQUESTS
    bare.kill()
    assert pg.wait_count(0, prefix=appname) == 0

    backends = {guarded.get("/").text for _ in range(REQUESTS)}
    assert len(backends) <= LANES
    assert pg.count(prefix=appname) == len(backends)
    guarded.stop()
    assert pg.wait_count(0, prefix=appname) == 0
