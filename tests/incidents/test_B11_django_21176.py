"""django/django#21176: the end of an async generator comes whenever it comes.

A loop over an async generator that is left in the middle does not end the generator. Its
``finally`` waits until the event loop gets round to it: after the request has finished. What it
asks of the database then, nobody cleans up. (Up to Django 6.0. In 6.1 such a generator is part of
a cycle, and ends when the garbage collector finds it, in the midst of another request.)
"""

from __future__ import annotations

from importlib.metadata import version

import pytest

from lifeguard.testing import Postgres
from tests.incidents.serving import Sides
from tests.support.overlay import overlay

CLIENTS = 3


def test_incident_B11(
    sides: Sides, pg: Postgres, appname: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bare, with CONN_MAX_AGE=0, each client that leaves in mid-stream costs a connection.

    Guarded, the generator may end late: it leaves nothing behind.
    """
    if not version("django").startswith("5.2"):
        monkeypatch.setenv("INCIDENT_OVERLAY", str(overlay("django52")))
    bare, guarded = sides.serve("uvicorn", "b11")

    for side in (bare, guarded):
        for _ in range(CLIENTS):
            side.get_and_leave("/", "streaming")
        assert side.log.wait_count("ended", CLIENTS) == CLIENTS, side.said()
    assert pg.wait_count(0, application_name=f"{appname}guarded") == 0
    assert pg.wait_count(CLIENTS, application_name=f"{appname}bare") == CLIENTS
