"""fkie-cad/FACT_core#1540: sessions that were live at the fork haunt the child's garbage collector.

A process with open SQLAlchemy sessions forks. The child's collector finds them, and does what it
does with a session that nobody closed: it rolls back and returns the connection, on the parent's
socket. The report saw segmentation faults; the silent end of it is the parent's work being lost.
"""

from __future__ import annotations

from tests.incidents.serving import Sides


def test_incident_F14(sides: Sides) -> None:
    """A row is written, a child is forked and collects its garbage, and the parent commits.

    Bare, the commit succeeds, and the row is gone. Guarded, it is there.
    """
    bare, guarded = sides.run("f14")
    assert [event["findings"] for event in bare.log.read("committed")] == [0], bare.said()
    assert [event["findings"] for event in guarded.log.read("committed")] == [1], guarded.said()
