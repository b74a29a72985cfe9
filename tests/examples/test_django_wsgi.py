"""examples/django_wsgi, by its one command."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lifeguard.testing import Postgres
from tests.examples.server import running, settled
from tests.support.ports import free_port

WORKERS, THREADS, JOBS = 2, 4, 4  # JOBS: threads of the example's own executor


def test_one_command(pg: Postgres, appname: str, dsn: str, tmp_path: Path) -> None:
    """A connection per thread of the server, kept; those of other threads are closed."""
    port, log = free_port(), tmp_path / "output"
    command = ("examples/run.py", "django_wsgi", f"--port={port}", f"--workers={WORKERS}")
    with running(*command, port=port, log=log, LIFEGUARD_DSN=dsn) as server:
        with ThreadPoolExecutor(8) as clients:
            answers = clients.map(server.http.post, (f"/orders/tea-{n}" for n in range(40)))
            assert sorted(answer.json()["id"] for answer in answers) == list(range(1, 41))
        assert server.http.post("/ship").json() == {"shipped": 40}
        for _ in range(20):  # as many threads, which end
            assert server.http.post("/mail").status_code == 202
        wait_until_all_are(server.http, "shipped, mailed")
        kept = WORKERS * (THREADS + JOBS)
        assert 1 <= settled(pg, appname, kept) <= kept
        assert server.stop() == 0
    assert pg.wait_count(0, prefix=appname) == 0


def wait_until_all_are(http: object, state: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        lines = http.get("/orders").text.splitlines()  # type: ignore[attr-defined]
        assert len(lines) == 40
        if all(line.endswith(state) for line in lines):
            return
        assert time.monotonic() < deadline, lines
        time.sleep(0.05)
