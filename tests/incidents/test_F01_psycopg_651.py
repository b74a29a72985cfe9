"""psycopg/psycopg#651: a pool made before the fork is the parent's, and the child cannot see it.

A web app keeps its pool in a global. The processes that serve are forked off later, and fail in
ways that do not point to the fork; the maintainer's answer is that such a pool cannot be.
"""

from __future__ import annotations

from tests.incidents.serving import Process, Sides


def test_incident_F01(sides: Sides) -> None:
    """Bare, the child's first borrow is the parent's own backend, without a word.

    Guarded, the same pool object gives the child a backend of its own, and the parent keeps the
    one it had.
    """
    bare, guarded = sides.run("f01")

    before, child, after = backends(bare)
    assert child == before == after

    before, child, after = backends(guarded)
    assert child != before
    assert after == before


def backends(process: Process) -> list[int]:
    events = process.log.read("parent before", "child", "parent after")
    assert len(events) == 3, process.said()
    return [event["backend"] for event in events]
