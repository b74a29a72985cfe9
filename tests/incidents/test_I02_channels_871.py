"""django/channels#871: the database connection of a consumer is idle, and nobody closes it.

Django closes connections when a request ends, and a websocket is none. What the last message
opened stays open for as long as no other one comes, whatever CONN_MAX_AGE says. (Channels closes
it since then when the next message comes.)
"""

from __future__ import annotations

from websockets.sync.client import connect

from lifeguard.testing import Postgres
from tests.incidents.serving import Sides


def test_incident_I02(sides: Sides, pg: Postgres, appname: str) -> None:
    """Bare, with CONN_MAX_AGE=0, a message leaves its connection open.

    Guarded, it is closed when the message is done, and the next message works.
    """
    bare, guarded = sides.serve("daphne", "i02")
    for side, left in ((bare, 1), (guarded, 0)):
        name = f"{appname}{'guarded' if side.guarded else 'bare'}"
        with connect(f"ws://127.0.0.1:{side.port}/", proxy=None) as chat:
            for _ in range(2):
                chat.send("hello")
                assert chat.recv(timeout=40).isdecimal()
                assert pg.wait_count(left, application_name=name) == left
