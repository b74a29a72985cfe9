"""celery/celery#10020: since Celery 5.6.0, "the pool 'pool-1' is closed" with --pool threads.

Celery had learnt to close Django's pool after each task (G02). Where tasks run in threads they
share the pool, and the end of one closes it under its neighbours; users saw it first as
psycopg/psycopg#1232. 5.6.1 closes it in prefork children only.
"""

from __future__ import annotations

from tests.incidents.queues import run
from tests.incidents.serving import Sides
from tests.support.overlay import overlay

TASKS = 3


def test_incident_G03(queue_sides: Sides) -> None:
    """Celery 5.6.0, three tasks at once, a pool of one: two wait for the first to be done.

    Bare, one gets the connection then, and the last one an error. Guarded, it waits its turn.
    """
    bare, guarded = queue_sides.start(
        "celery",
        "g03",
        *("--pool", "threads", "--concurrency", str(TASKS)),
        overlay=overlay("celery560"),
    )
    error, *results = sorted(run(bare, "order", TASKS))
    assert error.startswith("OperationalError: the pool 'pool-"), bare.said()
    assert error.endswith("is closed")
    assert results == ["ordered"] * (TASKS - 1)

    assert run(guarded, "order", TASKS) == ["ordered"] * TASKS, guarded.said()
    assert guarded.stop() == 0
