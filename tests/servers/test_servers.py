"""The matrix: every supported server, every way a request or its process ends.

The servers are real processes. What happened in them is in the event log, which they append to
with ``os.write``, and in ``pg_stat_activity``. The columns of one server share one run of it.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.servers.harness import FINISH_WITHIN, Server, reset
from tests.servers.rows import ROWS, STREAM

pytestmark = pytest.mark.servers

AGAIN = 3
"""How often each column repeats its request: once more than its pool has connections."""


def finished_once(server: Server, request: str) -> None:
    """Its unit ended once, after the app had ended in it."""
    server.wait_for("finished", request)
    assert [event.event for event in server.of(request) if event.event != "waiting"] == [
        "started",
        "ended",
        "finished",
    ]


def still_serves(server: Server) -> None:
    """The pool has all of its connections, and the server goes on."""
    for _ in range(AGAIN):
        request = server.new_id()
        response = server.get("ok", request)
        assert (response.status_code, response.text) == (200, f"ok {request}")
        finished_once(server, request)


def test_ok(server: Server) -> None:
    still_serves(server)


def test_error(server: Server) -> None:
    for _ in range(AGAIN):
        request = server.new_id()
        assert server.get("error", request).status_code == 500
        finished_once(server, request)
    assert "RuntimeError: as asked" in server.log.read_text()  # the server's to report, unchanged
    still_serves(server)


def test_stream(server: Server) -> None:
    for _ in range(AGAIN):
        request = server.new_id()
        response = server.get("stream", request)
        assert response.status_code == 200
        assert response.text == "".join(f"line {number}\n" for number in range(STREAM))
        finished_once(server, request)
    still_serves(server)


def test_disconnect_during_the_view(server: Server) -> None:
    for _ in range(AGAIN):
        request = server.new_id()
        client = server.send("wait", request)
        server.wait_for("waiting", request)
        reset(client)
        server.open_gate(request)
        finished_once(server, request)
    still_serves(server)


def test_disconnect_in_mid_stream(server: Server) -> None:
    for _ in range(AGAIN):
        request = server.new_id()
        client = server.send("flood", request)
        received = b""
        while b"first" not in received:
            received += client.recv(65536)
        reset(client)
        server.open_gate(request)
        finished_once(server, request)
    still_serves(server)


def test_leak(server: Server) -> None:
    """A connection that a request took and did not give back is taken back, and reported."""
    for _ in range(AGAIN):
        request = server.new_id()
        response = server.get("leak", request)
        assert (response.status_code, response.text) == (200, f"leak {request}")
        finished_once(server, request)
    assert "was not given back by the unit's end" in server.log.read_text()
    still_serves(server)


def test_sigterm_when_idle(server: Server) -> None:
    still_serves(server)  # and a server without lifespan has opened its worker
    assert server.events.wait_count("opened", server.row.workers) == server.row.workers
    server.terminate()
    server.events.wait_count("closed", server.row.workers)

    opened = server.events.per_pid("opened")
    assert len(opened) == server.row.workers
    assert set(opened.values()) == {1}
    assert server.events.per_pid("closed") == opened
    for pid in opened:
        order = [event.event for event in server.events.read() if event.pid == pid]
        assert order.index("opened") < order.index("started")
        assert order[-1] == "closed"
        if server.row.app.endswith("asgi_app:app"):
            assert order[:2] == ["opened", "startup"]
            assert order[-2:] == ["shutdown", "closed"]
    started, finished = (
        Counter(event["id"] for event in server.events.read(name))
        for name in ("started", "finished")
    )
    assert set(started.values()) == {1}
    assert finished == started
    left = server.pg.wait_count(0, prefix=server.application_name, timeout=FINISH_WITHIN)
    assert left == 0


@pytest.mark.parametrize(
    "bare_server",
    [row for row in ROWS if row.bare_sigterm],
    ids=lambda row: row.name,
    indirect=True,
)
def test_bare_sigterm(bare_server: Server) -> None:
    """Without lifeguard, on these servers, what ``atexit`` was to close is not closed."""
    assert bare_server.get("ok", bare_server.new_id()).status_code == 200
    assert bare_server.events.count("opened") == 1
    bare_server.terminate()
    assert bare_server.events.count("closed") == 0
