"""A server in a process of its own, as a person would start it, for a ``with`` block."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from lifeguard.testing import Postgres

ROOT = Path(__file__).parents[2]
READY_WITHIN = 90.0


class Server:
    """A running server: where it listens, and what it has said so far."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait_until_ready(self) -> None:
        """Until somebody listens on the port."""
        deadline = time.monotonic() + READY_WITHIN
        while True:
            status = self.process.poll()
            assert status is None, f"ended with status {status}:\n{self.output}"
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, f"nobody listens:\n{self.output}"
                time.sleep(0.02)

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Send the signal and wait for the end; the status."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(60)


def settled(pg: Postgres, appname: str, n: int, seconds: float = 40.0) -> int:
    """How many connections there are, once there are no more than *n*: a backend leaves a moment
    after its client."""
    deadline = time.monotonic() + seconds
    while (count := pg.count(prefix=appname)) > n and time.monotonic() < deadline:
        time.sleep(0.02)
    return count


@contextmanager
def running(
    *command: str, port: int, log: Path, cwd: Path = ROOT, **env: str | None
) -> Iterator[Server]:
    """Run ``python *command`` with *env* (None: without that variable) until the block ends."""
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", **env}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=cwd,
            env={name: value for name, value in variables.items() if value is not None},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    server = Server(process, port, log)
    try:
        server.wait_until_ready()
        yield server
        server.stop()
    finally:
        server.http.close()
        if process.poll() is None:  # something failed: end it and all that it started
            family = [process, *psutil.Process(process.pid).children(recursive=True)]
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            for member in family:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            process.wait()
