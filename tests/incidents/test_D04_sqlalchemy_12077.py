"""sqlalchemy/sqlalchemy#12077: a request that is cancelled by a task group loses its connection.

Behind a BaseHTTPMiddleware a client that leaves cancels the handler through an anyio task group,
and each such request left one connection behind. Reported with asyncpg under SQLAlchemy, where it
is the pool's own clean-up that the group cancels; with psycopg_pool it is the handler's.
"""

from __future__ import annotations

from tests.incidents.serving import Sides


def test_incident_D04(sides: Sides) -> None:
    """Bare, as many clients that leave as the pool is large, and it has nothing left to give.

    Guarded, the pool is as large as it was.
    """
    for side in sides.serve("uvicorn", "d04"):
        for number in (1, 2, 3) if side.guarded else (1, 2):
            assert side.get("/").text == "ok"
            side.get_and_leave("/stream", when="streaming")
            assert side.log.wait_count("cancelled", number) == number, side.said()
        assert side.get("/").text == ("ok" if side.guarded else "PoolTimeout")
