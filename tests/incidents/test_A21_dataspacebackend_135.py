"""CivicDataLab/DataSpaceBackend#135: twenty concurrent calls are twenty connections.

Connections to the database rose from 6 to 26 with twenty calls, and would have gone on up to its
limit. Under ASGI nothing else limits them: each request brings a thread and a connection.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from lifeguard.testing import Postgres
from tests.incidents.serving import Process, Sides

CALLS = 20
LANES = 4  # of apps/django_site.py


def test_incident_A21(sides: Sides, pg: Postgres, appname: str) -> None:
    """Bare, PostgreSQL sees a connection for each call.

    Guarded, it sees four, and all twenty are answered.
    """
    bare, guarded = sides.serve("uvicorn", "a21")

    assert seen_by_postgres(bare, CALLS, pg, f"{appname}bare") == CALLS
    assert seen_by_postgres(guarded, LANES, pg, f"{appname}guarded") == LANES


def seen_by_postgres(side: Process, working: int, pg: Postgres, name: str) -> int:
    """How many connections there are while *working* of the calls, and no more, can work."""
    with ThreadPoolExecutor(CALLS) as clients:
        answers = [clients.submit(side.get, "/") for _ in range(CALLS)]
        try:
            assert side.log.wait_count("working", working) == working, side.said()
            seen = pg.count(name)
        finally:
            side.log.path.with_suffix(".gate").touch()
        assert [answer.result().text for answer in answers] == ["ok"] * CALLS
    return seen
