"""coleifer/huey#44: a task that uses Django has to close the connection by hand.

Otherwise the consumer's threads keep theirs, and sooner or later the log is full of errors of the
database. The report asked for a word in the documentation. Now there is ``@db_task()``, a decorator
that can be forgotten as well.
"""

from __future__ import annotations

from tests.incidents.serving import Sides

WORKERS = 4


def test_incident_G13(queue_sides: Sides) -> None:
    """Four tasks, four worker threads. Bare, four connections are left.

    Guarded, with ``@lifeguard.task`` under ``@huey.task()``, none.
    """
    for side in queue_sides.run("g13"):
        (done,) = side.log.read("done")
        assert done["results"] == [1, 2, 3, 4], side.said()
        assert done["left"] == (0 if side.guarded else WORKERS), side.said()
