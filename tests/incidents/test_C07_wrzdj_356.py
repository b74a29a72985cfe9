"""wrzonance/WrzDJ#356: each open event stream pins a connection, until nobody else gets one.

Guests of an event keep a page open. Its stream needs the database once, at its start, and holds
the connection as long as it is open: fifteen guests, and every request of the site is a 500.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack

from tests.incidents.serving import Process, Sides

GUESTS = 3


def test_incident_C07(sides: Sides) -> None:
    """Bare, as many guests as the pool is large, and the next visitor gets a 500.

    Guarded, with ``await lifeguard.arelease()`` before the stream starts, the visitor is served
    while all the streams are open.
    """
    for side in sides.serve("uvicorn", "c07"):
        with ExitStack() as stack:
            for number in range(1, GUESTS + 1):
                stack.enter_context(guest(side))
                assert side.log.wait_count("streaming", number) == number, side.said()
            assert side.get("/").text == ("ok" if side.guarded else "PoolTimeout")


def guest(side: Process) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", side.port), timeout=40)
    client.sendall(b"GET /events HTTP/1.1\r\nHost: test\r\n\r\n")
    return client
