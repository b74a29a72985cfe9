"""apache/airflow#13265: tasks that hang for ever, since they are run with ``os.fork()``.

Airflow's Celery workers began to fork for each task, and left their pooled connections open. Some
tasks met a broken protocol, and some never came back. A lock of the pool that another thread
holds in the moment of the fork is one that nobody in the child will ever release.
"""

from __future__ import annotations

from tests.incidents.serving import Sides


def test_incident_F15(sides: Sides) -> None:
    """A task is forked while the worker's heartbeat is connecting. The pool's timeout is 3 s.

    Bare, the task waits for the lock of that thread, which no timeout ends. Guarded, the child's
    pool has locks of its own, and the task is done.
    """
    bare, guarded = sides.run("f15")
    assert [event.event for event in bare.log.read()] == ["task hangs"], bare.said()
    assert [event.event for event in guarded.log.read()] == ["task done"], guarded.said()
