"""django/channels#1206: with Channels the number of connections rises until the site fails.

A site moves to daphne for its first websocket, and keeps its ``CONN_MAX_AGE``. From then on each
request is served in a thread of its own, with a connection that is kept and never found again.
Without CONN_MAX_AGE it was well again, and each page connects anew.
"""

from __future__ import annotations

from websockets.sync.client import connect

from lifeguard.testing import Postgres
from tests.incidents.serving import Process, Sides

PAGES = 12
LANES = 4  # of apps/django_site.py


def test_incident_I03(sides: Sides, pg: Postgres, appname: str) -> None:
    """Bare, a dozen pages, one after another, are a dozen connections, and the chat has one too.

    Guarded, CONN_MAX_AGE does what it is for: there are no more connections than lanes, and the
    pages use them again.
    """
    bare, guarded = sides.serve("daphne", "i03")

    assert len(visit(bare)) == PAGES + 1
    assert pg.count(f"{appname}bare") == PAGES + 1

    assert len(visit(guarded)) <= LANES
    assert pg.count(f"{appname}guarded") <= LANES


def visit(side: Process) -> set[str]:
    """A dozen pages, with a chat open. The backends that answered."""
    with connect(f"ws://127.0.0.1:{side.port}/", proxy=None) as chat:
        chat.send("hello")
        backends = {str(chat.recv(timeout=40))}
        return backends | {side.get("/").text for _ in range(PAGES)}
