"""Substra/substra-backend#355: a task asks for one node, and gets the row of another one.

A Celery task starts processes, which authenticate with the database on the connection that they
have inherited, all of them at once. The project closes Django's connections before it starts a
process; a reviewer has it check, as well, that the row it gets is the one it has asked for.
"""

from __future__ import annotations

from tests.incidents.queues import run
from tests.incidents.serving import Sides


def test_incident_G21(queue_sides: Sides) -> None:
    """A task, in a transaction, starts two processes, one after the other.

    Bare, all three ask on one backend. Guarded, each has its own, and the task keeps its one.
    """
    bare, guarded = queue_sides.start("celery", "g21", "--pool", "solo")
    for side, backends in ((bare, 1), (guarded, 3)):
        ((before, after),) = run(side, "compute")
        assert before == after, side.said()
        authenticated = [event["backend"] for event in side.log.read("authenticated")]
        assert len(authenticated) == 2, side.said()
        assert len({before, *authenticated}) == backends
    assert guarded.stop() == 0
