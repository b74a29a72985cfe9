"""mishrasanjeev/agentic-org#993: "attached to a different loop", from the second task on.

Each task is an ``asyncio.run()``, and has an event loop of its own. The pool is one for all of
them, and belongs to the first one's. Production saw tasks that fail, and a database that its health
check called unhealthy; the project then wrote a loop that lives as long as the worker. With asyncpg
(theirs) the second task fails. A pool of psycopg goes on with what it has, and cannot grow.
"""

from __future__ import annotations

from tests.incidents.queues import client, outcome
from tests.incidents.serving import Process, Sides


def test_incident_G20(queue_sides: Sides) -> None:
    """A task with one query, and one with two at once; the pool may have two connections.

    Bare, the second task waits for a connection that nobody will open. Guarded, both run on one
    loop, where the pool is open.
    """
    bare, guarded = queue_sides.start("celery", "g20", "--pool", "prefork", "--concurrency", "1")

    first, second = evaluate_one_and_two(bare)
    assert first == 21, bare.said()
    assert second == "PoolTimeout: couldn't get a connection after 3.00 sec"

    assert evaluate_one_and_two(guarded) == [21, 42], guarded.said()
    assert guarded.stop() == 0


def evaluate_one_and_two(process: Process) -> list[object]:
    with client(process) as app:
        return [outcome(app.send_task("evaluate", [queries])) for queries in (1, 2)]
