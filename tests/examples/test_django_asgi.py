"""examples/django_asgi, by its one command: more visitors of each kind than there are lanes."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from lifeguard.testing import Postgres
from tests.examples.server import Server, running, settled
from tests.support.ports import free_port

LANES = 4  # in the example


def test_one_command(pg: Postgres, appname: str, dsn: str, tmp_path: Path) -> None:
    """Ten tabs, ten websockets, breaking streams and tasks: four connections, none left."""
    port, log = free_port(), tmp_path / "output"
    command = ("examples/run.py", "django_asgi", f"--port={port}")
    with running(*command, port=port, log=log, LIFEGUARD_DSN=dsn) as server, ExitStack() as open_:
        most = settled(pg, appname, LANES)
        assert server.http.post("/messages/first").json() == {"id": 1}
        tabs = [open_.enter_context(server.http.stream("GET", "/live")) for _ in range(10)]
        streams = [tab.iter_lines() for tab in tabs]
        for stream in streams:
            assert [next(stream), next(stream)] == ["id: 1", "data: first"]

        # Open tabs hold nothing: others are served, sync and async.
        with ThreadPoolExecutor(8) as clients:
            answers = clients.map(server.http.post, (f"/messages/{n}" for n in range(2, 32)))
            assert sorted(answer.json()["id"] for answer in answers) == list(range(2, 32))
            most = max(most, settled(pg, appname, LANES))
            pages = list(clients.map(server.http.get, ["/messages"] * 16))
        assert {len(page.text.splitlines()) for page in pages} == {31}
        for stream in streams:
            assert "data: 31" in lines_until(stream, "id: 31", more=1)

        sockets = [
            open_.enter_context(connect(f"ws://127.0.0.1:{port}/chat", open_timeout=40))
            for _ in range(10)
        ]
        sockets[0].send("hello")
        assert {socket.recv(timeout=40) for socket in sockets} == {"32: hello"}

        for _ in range(2 * LANES):  # each would take a connection along
            with pytest.raises(httpx.RemoteProtocolError):
                server.http.get("/export")
        for _ in range(2 * LANES):
            assert server.http.post("/count").status_code == 202
        most = max(most, settled(pg, appname, LANES))
        wait_for_messages(server, 32 + 2 * LANES)
        assert 1 <= max(most, settled(pg, appname, LANES)) <= LANES

        status = server.http.get("/lanes").json()
        assert len(status["lanes"]) <= LANES
        assert all(line["seconds"] < 30 for line in status["waiting"])  # for a turn, not for ever
        open_.close()
        assert server.stop() == 0
    assert pg.wait_count(0, prefix=appname) == 0


def lines_until(stream: object, line: str, *, more: int) -> list[str]:
    """The stream's lines up to this one, and so many after it."""
    lines: list[str] = []
    for each in stream:  # type: ignore[attr-defined]
        lines.append(each)
        if line in lines and len(lines) > lines.index(line) + more:
            return lines
    raise AssertionError(f"the stream ended before {line!r}")


def wait_for_messages(server: Server, n: int, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while len(server.http.get("/messages").text.splitlines()) < n:
        assert time.monotonic() < deadline, f"fewer than {n} messages:\n{server.output}"
        time.sleep(0.05)
