"""codingjoe/django-health-check#182: each health check leaves the connections of its threads.

The checks run side by side in threads that end with the answer. What they opened stays open until
the garbage collector comes, and the load balancer asks for the next check every few seconds.
"""

from __future__ import annotations

from tests.incidents.serving import Sides

ROUNDS, CHECKS = 3, 4


def test_incident_H02(sides: Sides) -> None:
    """Bare, three health checks of four threads leave twelve connections.

    Guarded, each thread closes its own while it ends. Nothing in the app names lifeguard.
    """
    for side in sides.run("h02"):
        assert [event["healthy"] for event in side.log.read("checked")] == [True] * ROUNDS
        (done,) = side.log.read("done")
        assert done["left"] == (0 if side.guarded else ROUNDS * CHECKS), side.said()
