"""Kludex/starlette#486: an error at startup is not logged, and does not prevent the start.

The database is down when the server starts. What the app raises during startup is taken for an
app that has no lifespan, and the server goes on without it.
"""

from __future__ import annotations

import socket

from tests.incidents.serving import Sides


def test_incident_J08(sides: Sides) -> None:
    """Bare, the server calls the lifespan unsupported and serves: every request is a 500.

    Guarded, it refuses to start, and says which address refused the connection, without the
    password.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        port = taken.getsockname()[1]
        dsn = f"postgresql://somebody:swordfish@127.0.0.1:{port}/shop"
        bare, guarded = sides.start("uvicorn", "j08", dsn=dsn)

        bare.wait_until_listening()
        assert bare.get("/").status_code == 500
        assert "appears unsupported" in bare.said()

        assert guarded.wait() != 0
    assert f"port={port} dbname=shop" in guarded.said()
    assert "startup failed" in guarded.said()
    assert "swordfish" not in guarded.said()
