"""procrastinate-org/procrastinate#1551: sync tasks leave Django's connections in their threads.

A worker runs sync tasks in threads, and nobody closes what they opened there. The report calls
procrastinate the outlier among the queues; tests notice it first, when their database cannot be
dropped: "is being accessed by other users". Its Django integration closes them since #1577.
"""

from __future__ import annotations

from psycopg.conninfo import make_conninfo

from lifeguard.testing import Postgres
from tests.incidents.seeds.deploying import database
from tests.incidents.serving import Sides

TASKS = 4


def test_incident_G09(sides: Sides, pg: Postgres, appname: str) -> None:
    """Four tasks at once, without that integration. Bare, they leave four connections.

    Guarded, with ``@lifeguard.task`` under ``@app.task``, none.
    """
    for guarded in (False, True):
        with database(pg, "g09") as db:
            dsn = make_conninfo(db.dsn, application_name=appname)
            side = sides.run_one("g09", guarded=guarded, dsn=dsn)
        assert side.log.count("ordered") == TASKS, side.said()
        (done,) = side.log.read("done")
        assert done["left"] == (0 if guarded else TASKS), side.said()
