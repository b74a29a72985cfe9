"""django/channels#1028: after a restart of the database every websocket finds it gone.

A middleware looks the user's token up before there is a consumer. What it opens is the whole
process's, is kept although ``CONN_MAX_AGE`` is 0, and is used by the next websocket; when the
database has been restarted, it is used as well, and nobody notices that it is broken.
"""

from __future__ import annotations

from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from lifeguard.testing import Postgres
from tests.incidents.queries import terminate
from tests.incidents.serving import Process, Sides


def test_incident_I05(sides: Sides, pg: Postgres) -> None:
    """Bare, once its connection is cut, every websocket is refused, for ever.

    Guarded, the first one that comes after it is let in.
    """
    bare, guarded = sides.serve("daphne", "i05")
    for side, after in ((bare, ["refused"] * 3), (guarded, ["hello ann"] * 3)):
        assert hello(side, "secret") == "hello ann"
        # With each message Channels closes what is old: with the last one before the next lookup.
        assert side.log.wait_count("left", 1) == 1, side.said()
        assert hello(side, "guessed") == "refused"
        terminate(pg, side.log.read("looked up")[-1]["backend"])
        assert [hello(side, "secret") for _ in range(3)] == after, side.said()


def hello(side: Process, token: str) -> str:
    try:
        with connect(f"ws://127.0.0.1:{side.port}/?{token}", proxy=None) as websocket:
            return str(websocket.recv(timeout=40))
    except InvalidStatus:
        return "refused"
