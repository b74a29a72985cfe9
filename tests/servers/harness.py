"""A server in a process group of its own, and clients that can be as rude as real ones."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx

from lifeguard.testing import Postgres
from tests.servers.rows import ROOT, Row
from tests.support import eventlog
from tests.support.eventlog import Event, EventLog
from tests.support.ports import free_port

START_WITHIN = 20.0
END_WITHIN = 20.0
FINISH_WITHIN = 10.0
GRACEFUL = 5
"""Seconds that a server gives requests in flight at its end, unless asked for others."""


class Server:
    """One row of the matrix, running. Start with :meth:`start`, end with :meth:`kill`."""

    def __init__(
        self,
        row: Row,
        folder: Path,
        pg: Postgres,
        application_name: str,
        *,
        bare: bool = False,
        graceful: float = GRACEFUL,
        more: str = "",
        env: dict[str, str] | None = None,
    ) -> None:
        self.row = row
        self.bare = bare
        self.pg = pg
        self.application_name = application_name
        self.events = EventLog(folder / "events.jsonl")
        self.log = folder / "server.log"
        self.gates = folder / "gates"
        self.gates.mkdir()
        self.port = free_port()
        self.command = row.command(self.port, graceful=graceful, more=more)
        self._environ = {
            **os.environ,
            eventlog.ENV: str(self.events.path),
            "APP_DSN": pg.dsn,
            "APP_NAME": application_name,
            "APP_GATES": str(self.gates),
            "APP_BARE": "1" if bare else "",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "default",
            **row.env,
            **(env or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until its port answers. Servers listen before their workers are up."""
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, *self.command],
                cwd=ROOT,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_WITHIN
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise AssertionError(f"{self.row.name} did not start:\n{self.tail()}")

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def terminate(self) -> int:
        """SIGTERM to the process that was started, as a deployment does it. Its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_WITHIN)

    def kill(self) -> None:
        """The whole process group, however it is."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self.events.close()

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    # -- clients -------------------------------------------------------------------------------

    def new_id(self) -> str:
        return uuid.uuid4().hex[:12]

    def get(self, path: str, request: str) -> httpx.Response:
        address = f"http://127.0.0.1:{self.port}/{path}"
        return httpx.get(address, params={"id": request}, timeout=15, trust_env=False)

    def send(self, path: str, request: str) -> socket.socket:
        """A request whose answer is not read yet."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=15)
        client.sendall(f"GET /{path}?id={request} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return client

    def open_gate(self, request: str) -> None:
        """Let an app that waits in this request go on."""
        (self.gates / request).touch()

    # -- what the log says ---------------------------------------------------------------------

    def of(self, request: str) -> list[Event]:
        return [event for event in self.events.read() if event.extra.get("id") == request]

    def wait_for(self, name: str, request: str) -> None:
        """Until this request has got there, in the server's process."""
        deadline = time.monotonic() + FINISH_WITHIN
        while name not in [event.event for event in self.of(request)]:
            assert time.monotonic() < deadline, f"no event {name!r}: {self.of(request)}"
            time.sleep(0.01)


def reset(client: socket.socket) -> None:
    """Be gone at once, as a client that crashed: RST instead of FIN."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
