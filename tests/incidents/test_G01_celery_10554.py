"""celery/celery#10554: Django's connection pool is closed at every task boundary.

Celery's Django fixup closes connections before and after each task, and where there is a pool, the
pool: each task fills a new one and throws it away, with its threads and connections. (Before
that, see G02, the children shared it.)
"""

from __future__ import annotations

from tests.incidents.queues import run
from tests.incidents.serving import Process, Sides

TASKS, CHILDREN = 12, 2


def test_incident_G01(queue_sides: Sides) -> None:
    """Two prefork children, twelve tasks. Bare, these are twelve connections.

    Guarded, each child has one, which serves task after task, and is closed with the child.
    """
    bare, guarded = queue_sides.start(
        "celery", "g01", "--pool", "prefork", "--concurrency", str(CHILDREN)
    )
    assert len(connections(bare)) == TASKS, bare.said()

    used = connections(guarded)
    assert len(used) == len({child for child, _ in used}) <= CHILDREN, guarded.said()
    assert guarded.stop() == 0


def connections(process: Process) -> set[tuple[int, int]]:
    """Which child had which."""
    return {(child, backend) for child, backend in run(process, "order", TASKS)}
