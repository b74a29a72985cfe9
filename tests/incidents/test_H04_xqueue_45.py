"""openedx/xqueue#45: under load, connections beyond the limit of the database.

The consumer of a queue has a few threads at a time, and new ones all the time. Django does not
close the connection of a thread that ends, so there are as many as there were threads, until
PostgreSQL has no more to give. The project closed them by hand, at the end of each thread.
"""

from __future__ import annotations

from psycopg.conninfo import make_conninfo

from lifeguard.testing import Postgres
from tests.incidents.seeds.deploying import database
from tests.incidents.serving import Sides

LIMIT, SUBMISSIONS = 24, 60


def test_incident_H04(sides: Sides, pg: Postgres, appname: str) -> None:
    """60 submissions, 4 threads at a time, and a database that gives 24 connections.

    Bare, it refuses whoever comes after the 24th thread. Guarded, by the installed app alone,
    all submissions are graded.
    """
    with database(pg, "h04", limit=LIMIT) as db:
        dsn = make_conninfo(db.dsn, application_name=appname)
        bare = sides.run_one("h04", guarded=False, dsn=dsn)
        assert bare.log.count("graded") == LIMIT, bare.said()
        assert bare.log.count("refused") == SUBMISSIONS - LIMIT
        assert "too many connections" in bare.log.read("refused")[0]["why"]

        guarded = sides.run_one("h04", guarded=True, dsn=dsn)
        graded = guarded.log.read("graded")
        assert sorted(event["submission"] for event in graded) == list(range(SUBMISSIONS))
        assert db.wait_at_most(0) == 0
