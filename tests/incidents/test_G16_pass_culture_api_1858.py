"""pass-culture/pass-culture-api#1858: RQ forks a process for each job, with the connections.

What the worker has asked at its start stays connected, and each job's process inherits the
connection. The project closed session and engine before each job; the report cites what the
manuals of RQ and SQLAlchemy say about forks.
"""

from __future__ import annotations

from tests.incidents.serving import Sides

JOBS = 4


def test_incident_G16(queue_sides: Sides) -> None:
    """Four jobs, one after another. Bare, each asks on the worker's own backend.

    Guarded, with ``lifeguard.rq.Worker``, each has one of its own, and the worker keeps its own.
    """
    bare, guarded = queue_sides.run("g16")
    for side in (bare, guarded):
        assert [event.event for event in side.log.read()] == ["check", *["job"] * JOBS, "check"], (
            side.said()
        )
    assert len({event["backend"] for event in bare.log.read()}) == 1

    before, after = guarded.log.read("check")
    assert before["backend"] == after["backend"]
    assert len({event["backend"] for event in guarded.log.read()}) == 1 + JOBS
