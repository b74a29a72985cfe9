"""The-AI-Republic/pi-dash#228: about 94 of 100 connections are idle, and nobody will use them.

A chat's event stream checked its reader in ``asyncio.to_thread``. The threads behind it belong to
the event loop and not to a request, so nothing closes the connections that they open: Django's
signals run elsewhere.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack

from lifeguard.testing import Postgres
from tests.incidents.serving import Process, Sides

TABS = 4


def test_incident_C20(sides: Sides, pg: Postgres, appname: str) -> None:
    """Bare, each thread keeps its connection, while the chats are open and when they are closed.

    Guarded, the connection is closed when the check is done.
    """
    bare, guarded = sides.serve("uvicorn", "c20")
    for side, left in ((bare, TABS), (guarded, 0)):
        name = f"{appname}{'guarded' if side.guarded else 'bare'}"
        with ExitStack() as stack:
            for _ in range(TABS):
                stack.enter_context(chat(side))
            assert side.log.wait_count("streaming", TABS) == TABS, side.said()
            assert pg.wait_count(left, application_name=name) == left
        assert pg.wait_count(left, application_name=name) == left


def chat(side: Process) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", side.port), timeout=40)
    client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
    return client
