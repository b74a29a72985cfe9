"""benoitc/gunicorn#2529: requests in flight are dropped by a "graceful" shutdown.

A deployment sends SIGTERM, and clients whose requests were accepted get a reset connection.
Reported of gunicorn's sync worker. The server here is waitress, which leaves SIGTERM to the
operating system, and so drops a request in the middle of its query.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from lifeguard.testing import Postgres
from tests.incidents.serving import Sides


def test_incident_K15(sides: Sides, pg: Postgres, appname: str) -> None:
    """Bare, the process dies of the signal, and the client gets nothing.

    Guarded, SIGTERM unwinds the server: the request is answered, its connection is returned, and
    the pool is closed after that.
    """
    bare, guarded = sides.serve("waitress", "k15")
    with ThreadPoolExecutor() as clients:
        answers = []
        for side in (bare, guarded):
            answers.append(clients.submit(side.get, "/"))
            assert side.log.wait_count("working", 1) == 1, side.said()
            side.stop()

        with pytest.raises(httpx.RemoteProtocolError):
            answers[0].result()
        assert bare.log.count("returned") == 0

        assert answers[1].result().text == "ok"
        assert guarded.log.count("returned") == 1
    assert pg.wait_count(0, prefix=appname) == 0
