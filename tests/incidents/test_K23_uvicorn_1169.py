"""Kludex/uvicorn#1169: at Ctrl-C, gunicorn's uvicorn worker does not run the app's shutdown.

gunicorn tells its workers to leave at once by SIGQUIT, which uvicorn's worker does not listen to.
It hangs until gunicorn kills it; what the app does "on shutdown" is skipped every time.
"""

from __future__ import annotations

import signal

from lifeguard.testing import Postgres
from tests.incidents.serving import Sides


def test_incident_K23(sides: Sides, pg: Postgres, appname: str) -> None:
    """Bare, the app is started and never shut down. Guarded, it is.

    lifeguard adds its hook to gunicorn's configuration, and wraps the app.
    """
    config = ["--config", "python:tests.incidents.apps.k23_gunicorn"]
    bare, guarded = sides.serve("gunicorn", "k23", *config)
    for side in (bare, guarded):
        assert side.get("/test").json() == "test"
        side.send(signal.SIGINT)
    for side in (bare, guarded):
        side.wait()

    assert [event.event for event in bare.log.read()] == ["on startup trigger"], bare.said()
    assert [event.event for event in guarded.log.read()] == [
        "on startup trigger",
        "on shutdown trigger",
    ], guarded.said()
    assert pg.wait_count(0, prefix=appname) == 0
