"""mobius-os/mobius#6: open browser tabs pin every connection, and the health check stays green.

Each tab keeps an event stream open, and with it the connection of its one look-up. With fifteen
of fifteen taken no page was served any more, while ``/health``, which asks nobody, said that all
was well: nothing restarted the app.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack

from tests.incidents.serving import Process, Sides

TABS = 4  # and so many connections has the pool


def test_incident_C11(sides: Sides) -> None:
    """Bare, with as many tabs as the pool is large, the home page is a 500 and health is green.

    Guarded, a tab holds nothing between its queries: both are right. (Shown with Django's pool.)
    """
    for side in sides.serve("uvicorn", "c11"):
        with ExitStack() as stack:
            for number in range(1, TABS + 1):
                stack.enter_context(tab(side))
                assert side.log.wait_count("streaming", number) == number, side.said()
            assert side.get("/health").text == "healthy"
            home = side.get("/")
            if side.guarded:
                assert home.text == "ok", side.said()
            else:
                assert home.status_code == 500
                assert "couldn't get a connection" in home.text


def tab(side: Process) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", side.port), timeout=40)
    client.sendall(b"GET /tab HTTP/1.1\r\nHost: test\r\n\r\n")
    return client
