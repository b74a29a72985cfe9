"""celery/celery#9953: "couldn't get a connection after 30.0 sec", since Django has a pool.

The pool was opened in the parent, and its children share it: the connections that there are,
without the threads that would open new ones. Up to Celery 5.5 nothing told Django so. (5.6 closes
the pool after each task: see G01 and G03 for what that costs.)
"""

from __future__ import annotations

from typing import Any

from lifeguard.testing import Postgres
from tests.incidents.queues import run
from tests.incidents.serving import Process, Sides
from tests.support.overlay import overlay


def test_incident_G02(queue_sides: Sides, pg: Postgres, appname: str) -> None:
    """Celery 5.5, a query while the app is loaded, and a database that is restarted later on.

    Bare, what the child inherited is not replaced: no task gets a connection any more. (The pool's
    timeout is 3 s.) Guarded, the child has a pool of its own, which replaces them.
    """
    bare, guarded = queue_sides.start(
        "celery", "g02", "--pool", "prefork", "--concurrency", "1", overlay=overlay("celery55")
    )
    result = after_a_restart(bare, pg, f"{appname}bare")
    assert result == "OperationalError: couldn't get a connection after 3.00 sec", bare.said()

    assert after_a_restart(guarded, pg, f"{appname}guarded") == 42, guarded.said()
    assert guarded.stop() == 0


def after_a_restart(process: Process, pg: Postgres, name: str) -> Any:
    """What the third task says: the two before it may find connections that are broken."""
    assert run(process, "order") == [42], process.said()
    with pg.connect() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name = %s",
            [name],
        )
    return run(process, "order", 3)[-1]
