"""the-momentum/python-ai-kit#122: Celery's children inherit the engine's connections.

The kit makes its SQLAlchemy engine when the module is imported, before Celery forks, and has
no hook to dispose of it in the children. As long as nothing asks the database that early it goes
well; the report is about the day when something does.
"""

from __future__ import annotations

from tests.incidents.queues import run
from tests.incidents.serving import Process, Sides


def test_incident_G08(queue_sides: Sides) -> None:
    """A query at import, two prefork children. Bare, both ask on the parent's connection.

    They take turns here, so that both survive it. Guarded, each has a connection of its own.
    """
    bare, guarded = queue_sides.start("celery", "g08", "--pool", "prefork", "--concurrency", "2")
    assert children_and_backends(bare) == (2, 1), bare.said()
    assert children_and_backends(guarded) == (2, 2), guarded.said()
    assert guarded.stop() == 0


def children_and_backends(process: Process) -> tuple[int, int]:
    children, backends = zip(*run(process, "order", 2), strict=True)
    return len(set(children)), len(set(backends))
