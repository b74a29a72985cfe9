"""Kludex/uvicorn#260: the lifespan is switched off, and with it whatever it opens.

The report asks for an option, for frameworks that have not implemented the protocol. Many
deployments have had it set since then. What an app opens at its startup later on is not opened
there, without a word.
"""

from __future__ import annotations

import signal

from lifeguard.testing import Postgres
from tests.incidents.serving import Sides


def test_incident_J10(sides: Sides, pg: Postgres, appname: str) -> None:
    """``uvicorn --lifespan off``, and an app whose pool is in its lifespan's state.

    Bare, there is no pool. Guarded, the wrapper runs the lifespan itself, at the first request and
    at the end, and hands its state on.
    """
    bare, guarded = sides.serve("uvicorn", "j10", "--lifespan", "off")

    assert bare.get("/").text == "AttributeError"
    bare.stop()
    assert bare.log.read() == []

    assert guarded.get("/").text == "ok"
    assert guarded.get("/").text == "ok"
    assert guarded.stop() == -signal.SIGTERM
    assert "did not end within" not in guarded.said()
    assert [event.event for event in guarded.log.read()] == ["pool opened", "pool closed"]
    assert pg.wait_count(0, prefix=appname) == 0
