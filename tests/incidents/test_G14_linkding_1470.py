"""sissbruecker/linkding#1470: "the connection is closed", in every task from then on.

Huey's threads keep their connection, and one day the database has dropped it. Django looks
whether a connection is still good, and replaces it, when a request begins or ends; a task is none,
so ``CONN_HEALTH_CHECKS`` changes nothing.
"""

from __future__ import annotations

from tests.incidents.serving import Sides


def test_incident_G14(queue_sides: Sides) -> None:
    """Two tasks, a restart of the database, three tasks. Bare, these three fail.

    Guarded, with ``@lifeguard.task``, none does, and ``CONN_MAX_AGE=600`` still holds: the tasks
    before the restart had one connection, and those after it another one.
    """
    bare, guarded = queue_sides.run("g14")

    assert [event.event for event in bare.log.read()] == ["done"] * 2 + ["failed"] * 3, bare.said()
    assert "the connection is closed" in bare.log.read("failed")[-1]["error"]

    backends = [event["backend"] for event in guarded.log.read("done")]
    assert len(backends) == 5, guarded.said()
    before, after = set(backends[:2]), set(backends[2:])
    assert len(before) == len(after) == 1
    assert before != after
