"""examples/starlette_app, by its one command."""

from __future__ import annotations

from pathlib import Path

from websockets.sync.client import connect

from lifeguard.testing import Postgres
from tests.examples.server import running, settled
from tests.support.ports import free_port


def test_one_command(pg: Postgres, appname: str, dsn: str, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "output"
    command = ("examples/run.py", "starlette_app", f"--port={port}")
    with running(*command, port=port, log=log, LIFEGUARD_DSN=dsn) as server:
        assert server.http.post("/vote/tea").json() == {"tea": 1}
        with connect(f"ws://127.0.0.1:{port}/live", open_timeout=40) as websocket:
            for name, answer in (("tea", "tea: 2"), ("milk", "milk: 1"), ("tea", "tea: 3")):
                websocket.send(name)
                assert websocket.recv(timeout=40) == answer
        for _ in range(10):  # more than the pool has: a stream gives back, also one that is left
            with server.http.stream("GET", "/export") as response:
                assert response.status_code == 200
        assert server.http.get("/export").text == "milk,1\ntea,3\n"
        assert 1 <= settled(pg, appname, 4) <= 4
        assert server.stop() == 0
    assert pg.wait_count(0, prefix=appname) == 0
    assert "not given back" not in server.output
