"""psycopg/psycopg#395: in a preloaded worker the pool never gets a new connection.

A Flask app on ``gunicorn --preload`` worked until its connections expired. Nothing replaced
them: the threads that open connections stayed behind in the master when the worker was forked.
"""

from __future__ import annotations

from lifeguard.testing import Postgres
from tests.incidents.serving import Sides


def test_incident_F02(sides: Sides, pg: Postgres, appname: str) -> None:
    """Bare, a worker serves on what it inherited; when that is gone, every request times out.

    Guarded, the worker's pool has its own threads, and replaces the lost connection.
    """
    bare, guarded = sides.serve("gunicorn", "f02", "--preload", "--workers", "1")
    assert bare.get("/").text == "ok"
    assert guarded.get("/").text == "ok"

    lose_connections(pg, appname)

    assert bare.get("/").text == "PoolTimeout"
    assert bare.get("/").text == "PoolTimeout"
    assert guarded.get("/").text == "ok"
    assert guarded.get("/").text == "ok"


def lose_connections(pg: Postgres, appname: str) -> None:
    """What an idle timeout or a restart of the server does."""
    with pg.connect() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE starts_with(application_name, %s)",
            [appname],
        )
