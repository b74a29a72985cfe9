"""celery/celery#2453: every worker shares the same database connection.

The prefork children inherited the connection that their parent had opened. "Hilarity ensues," says
the report. Celery has closed Django's connections in its children since, with a relapse
(celery/celery#5483); pools that are not Django's are still shared.
"""

from __future__ import annotations

from tests.incidents.queues import run
from tests.incidents.serving import Process, Sides


def test_incident_G05(queue_sides: Sides) -> None:
    """A pool is opened at import. Bare, two children speak on one connection.

    They take turns here, so that both survive it. Guarded, each has a connection of its own.
    """
    bare, guarded = queue_sides.start("celery", "g05", "--pool", "prefork", "--concurrency", "2")
    assert children_and_backends(bare) == (2, 1), bare.said()
    assert children_and_backends(guarded) == (2, 2), guarded.said()
    assert guarded.stop() == 0


def children_and_backends(process: Process) -> tuple[int, int]:
    children, backends = zip(*run(process, "order", 2), strict=True)
    return len(set(children)), len(set(backends))
