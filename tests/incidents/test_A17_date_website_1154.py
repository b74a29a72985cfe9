"""Datateknologerna-vid-Abo-Akademi/date-website#1154: clean-up runs where the connection is not.

After a move to ASGI, ``request_finished`` was seen on another thread than the one that had asked
the database. The connections stayed, the server ended them when they had been idle for too long,
and then the pages for 404 and 500 failed. Those pages are where it is so: Django makes them in the
event loop's own threads.
"""

from __future__ import annotations

from lifeguard.testing import Postgres
from tests.incidents.serving import Process, Sides

PAGES = 8  # a few, because the event loop may have more threads than the one


def test_incident_A17(sides: Sides, pg: Postgres, appname: str) -> None:
    """Bare, the error page leaves its connection to a thread that no request finishes in. When
    PostgreSQL ends it, the page fails from then on: 500 instead of 404.

    Guarded, the connection is gone with the page, and there is nothing to fail.
    """
    bare, guarded = sides.serve("uvicorn", "a17")

    for side in (bare, guarded):
        assert side.get("/nowhere").status_code == 404, side.said()
        (query,) = side.log.read("query of the error page")
        assert side.log.wait_count("finished", 1) == 1
        (finished,) = side.log.read("finished")
        assert query.thread != finished.thread

    assert pg.wait_count(0, application_name=f"{appname}guarded") == 0
    assert pg.count(f"{appname}bare") == 1

    assert after_an_idle_night(pg, f"{appname}bare", bare) != {404}
    assert after_an_idle_night(pg, f"{appname}guarded", guarded) == {404}


def after_an_idle_night(pg: Postgres, name: str, side: Process) -> set[int]:
    """What the page says once PostgreSQL has ended the connections that it has left behind."""
    with pg.connect() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name = %s",
            [name],
        )
    return {side.get("/nowhere").status_code for _ in range(PAGES)}
