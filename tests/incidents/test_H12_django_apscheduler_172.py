"""jcass77/django-apscheduler#172: clients build up, until there are "too many already".

A scheduled job works in a ``ThreadPoolExecutor`` of its own. Calling ``close_old_connections()``
in the job "doesn't seem to do anything", and neither does ``CONN_MAX_AGE``: the connections are
those of the executor's threads, which are gone.
"""

from __future__ import annotations

from tests.incidents.serving import Sides

RUNS, THREADS = 3, 5


def test_incident_H12(sides: Sides) -> None:
    """Three runs of five threads. Bare, they leave 15 connections.

    Guarded, by the installed app alone, each thread closes its own while it ends.
    """
    for side in sides.run("h12"):
        results = [event["results"] for event in side.log.read("run")]
        assert results == [[1, 2, 3, 4, 5]] * RUNS, side.said()
        (done,) = side.log.read("done")
        assert done["left"] == (0 if side.guarded else RUNS * THREADS), side.said()
