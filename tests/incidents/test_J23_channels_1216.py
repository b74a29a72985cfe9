"""django/channels#1216: under daphne there is no place to close what a consumer has opened.

Channels and daphne know no lifespan. A consumer keeps a client session, opened at its first use;
at Ctrl-C it is reported as never closed, and the author asks where the code that closes it goes.
"""

from __future__ import annotations

import signal

import pytest

from lifeguard.testing import Postgres
from tests.incidents.serving import Sides


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_incident_J23(sides: Sides, pg: Postgres, appname: str, number: int) -> None:
    """Bare, nothing behind the ``yield`` runs. Guarded, the pool is closed in order, once."""
    bare, guarded = sides.serve("daphne", "j23")
    for side in (bare, guarded):
        assert side.get("/").text == "ok"
        side.send(number)
        side.wait()

    assert [event.event for event in bare.log.read()] == ["pool opened"]
    assert [event.event for event in guarded.log.read()] == ["pool opened", "pool closed"]
    assert pg.wait_count(0, prefix=appname) == 0
