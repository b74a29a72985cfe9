"""examples/fastapi_app: by its one command, and under fire on four workers."""

from __future__ import annotations

import random
import signal
import socket
import struct
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lifeguard.testing import Postgres
from tests.examples.server import running, settled
from tests.support.ports import free_port

WORKERS = 4
REQUESTS = 1000
POOL = 4  # max_size in the example


def test_one_command(pg: Postgres, appname: str, dsn: str, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "output"
    command = ("examples/run.py", "fastapi_app", f"--port={port}", "--workers=2")
    with running(*command, port=port, log=log, LIFEGUARD_DSN=dsn) as server:
        assert server.http.post("/notes", json={"text": "first"}).json() == {"id": 1}
        assert server.http.post("/notes", json={"text": "second"}).status_code == 201
        assert server.http.get("/notes").json() == [{"text": "second"}, {"text": "first"}]
        assert server.http.get("/notes/aloud").text == "second\nfirst\n"
        assert server.http.get("/careless/2").json() == {"text": "second"}
        for _ in range(2 * POOL * 2):  # more than both pools have
            assert server.http.get("/careless/99").status_code == 404
        assert 1 <= server.http.get("/connections").json()["connections"] <= 2 * POOL
        assert server.stop(signal.SIGINT) == 0
    assert "in unit 'GET /careless/99' was not given back" in server.output
    assert "careless" in server.output
    assert pg.wait_count(0, prefix=appname) == 0


@pytest.mark.parametrize("seed", [20261121])
def test_thousand_requests_with_disconnects_on_four_workers(
    pg: Postgres, appname: str, dsn: str, tmp_path: Path, seed: int
) -> None:
    """Nothing is left in PostgreSQL, and each worker opened and closed its pool once."""
    port, log, witness = free_port(), tmp_path / "output", tmp_path / "witness"
    command = (
        *("-m", "uvicorn", "--app-dir=examples/fastapi_app", "app:app", f"--port={port}"),
        f"--workers={WORKERS}",
        "--timeout-worker-healthcheck=60",  # else a busy machine gets a fifth worker
    )
    env = {"LIFEGUARD_DSN": dsn, "EXAMPLE_LOG": str(witness)}
    with running(*command, port=port, log=log, **env) as server:
        wait_for_lines(witness, WORKERS)
        assert server.http.post("/notes", json={"text": "hello"}).json() == {"id": 1}

        most = 0
        with ThreadPoolExecutor(16) as clients:
            chances = random.Random(seed)
            shots = [clients.submit(shoot, port, chances.getrandbits(64)) for _ in range(REQUESTS)]
            while not all(shot.done() for shot in shots):
                most = max(most, settled(pg, appname, WORKERS * POOL, seconds=2))
                time.sleep(0.02)
        fates = Counter(shot.result() for shot in shots)

        # It was a fight: many left, many were served, nobody was refused for want of a connection.
        assert fates.total() == REQUESTS
        assert fates["left"] > REQUESTS / 4
        assert fates["200"] > REQUESTS / 10
        assert fates["201"] + fates["404"] > REQUESTS / 20
        assert set(fates) <= {"left", "200", "201", "404"}, (fates, server.output[-4000:])
        assert server.output.count("was not given back by the unit's end") > WORKERS * POOL
        assert WORKERS <= most <= WORKERS * POOL

        server.stop(signal.SIGTERM)
    assert pg.wait_count(0, prefix=appname) == 0
    lines = [line.split() for line in witness.read_text().splitlines()]
    opens = Counter(pid for event, pid in lines if event == "open")
    closes = Counter(pid for event, pid in lines if event == "close")
    assert opens.total() == closes.total() == WORKERS
    assert opens == closes
    assert set(opens.values()) == {1}


BODY = b'{"text": "a note"}'
REQUEST_LINES = (
    (b"GET /notes", b""),
    (b"POST /notes", BODY),
    (b"GET /careless/1", b""),
    (b"GET /careless/999999", b""),
)


def shoot(port: int, seed: int) -> str:
    """One request, which may leave at any point: the status it got, or ``left``."""
    chance = random.Random(seed)
    line, body = chance.choice(REQUEST_LINES)
    head = b"%s HTTP/1.1\r\nhost: example\r\nconnection: close\r\n" % line
    if body:
        head += b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
    message = head + b"\r\n" + body
    leave = chance.choice(("no", "no", "in the request", "in the handler", "in the response"))
    with socket.create_connection(("127.0.0.1", port), 60) as client:
        # Closing sends RST, whatever is still on its way.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if leave == "in the request":
            client.sendall(message[: chance.randrange(len(message))])
            return "left"
        client.sendall(message)
        if leave == "in the handler":
            time.sleep(chance.uniform(0, 0.03))  # the point at which it leaves, not a wait
            return "left"
        if leave == "in the response":
            client.recv(chance.randrange(1, 20))
            return "left"
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
        return answer.split(b" ", 2)[1].decode() if answer else "no answer"


def wait_for_lines(path: Path, n: int, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists() or len(path.read_text().splitlines()) < n:
        assert time.monotonic() < deadline, f"fewer than {n} workers have opened"
        time.sleep(0.02)
