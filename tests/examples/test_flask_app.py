"""examples/flask_app, by its one command."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lifeguard.testing import Postgres
from tests.examples.server import running, settled
from tests.support.ports import free_port


def test_one_command(pg: Postgres, appname: str, dsn: str, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "output"
    command = ("examples/run.py", "flask_app", f"--port={port}", "--workers=2")
    with running(*command, port=port, log=log, LIFEGUARD_DSN=dsn) as server:
        with ThreadPoolExecutor(8) as clients:
            paths = [f"/guests/{number}" for number in range(40)]
            ids = [answer.json()["id"] for answer in clients.map(server.http.post, paths)]
        assert sorted(ids) == list(range(1, 41))
        assert len(server.http.get("/guests").text.splitlines()) == 40
        assert server.http.get("/careless/1").status_code == 200
        for _ in range(2 * 4 * 2):  # more than both pools have
            assert server.http.get("/careless/99").status_code == 404
        assert len(server.http.get("/guests").text.splitlines()) == 40
        assert 1 <= settled(pg, appname, 2 * 4) <= 2 * 4
        assert server.stop() == 0
    assert "in unit 'GET /careless/99' was not given back" in server.output
    assert pg.wait_count(0, prefix=appname) == 0
