"""A worker that is told to end while it opens: what it has opened by then is closed again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.servers.harness import END_WITHIN, ROOT, START_WITHIN
from tests.servers.rows import ROWS, WSGI_APP, Row
from tests.support.eventlog import ENV, EventLog
from tests.support.ports import free_port

pytestmark = pytest.mark.servers

HOOKS = {"gunicorn": "-c python:lifeguard.gunicorn"}
"""As our documentation has it: without them uvicorn-worker takes no notice of a SIGINT."""


def ask(port: int) -> socket.socket:
    """The first request, which makes a server without startup open its worker."""
    deadline = time.monotonic() + START_WITHIN
    while True:
        try:
            client = socket.create_connection(("127.0.0.1", port), timeout=5)
        except OSError:
            assert time.monotonic() < deadline, "it does not listen"
            time.sleep(0.02)
        else:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return client


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_end_during_the_startup(
    row: Row, number: signal.Signals, tmp_path: Path, eventlog: EventLog
) -> None:
    """Whatever the server makes of it (some go on with the startup first), each resource that was
    opened is closed once, in its process, last opened first."""
    gates = tmp_path / "gates"
    gates.mkdir()
    kind = "wsgi" if row.app == WSGI_APP else "asgi"
    row = replace(row, app="tests.servers.apps.startup_app:app")
    port = free_port()
    log = tmp_path / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, *row.command(port, graceful=5, more=HOOKS.get(row.package, ""))],
            cwd=ROOT,
            env={
                **os.environ,
                **row.env,
                ENV: str(eventlog.path),
                "APP_KIND": kind,
                "APP_GATES": str(gates),
                "PYTHONPATH": str(ROOT),
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        client = None if row.lifespan else ask(port)
        seen = eventlog.wait_count("opening", row.workers, timeout=START_WITHIN)
        assert seen == row.workers, log.read_text()
        server.send_signal(number)
        (gates / "startup").touch()
        server.wait(END_WITHIN)
        if client is not None:
            client.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    for opened, closed in (("opened", "closed"), ("slow opened", "slow closed")):
        assert eventlog.per_pid(closed) == eventlog.per_pid(opened), (
            eventlog.path.read_text() + log.read_text()
        )
    for pid in eventlog.per_pid("opened"):
        ends = [e.event for e in eventlog.read("closed", "slow closed") if e.pid == pid]
        assert ends in (["closed"], ["slow closed", "closed"])
