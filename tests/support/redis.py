"""A redis of this run: nothing in it, nothing kept, gone at the end of the block."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

from tests.support.ports import free_port

START_WITHIN = 60.0


@contextlib.contextmanager
def redis() -> Iterator[str]:
    """Its URL, for a broker setting."""
    command = shutil.which("redis-server")
    if command is None:
        raise RuntimeError(
            "this test needs redis-server, and there is none on PATH. Install one with the "
            "package manager (Debian: `apt-get install redis-server`)"
        )
    port = free_port()
    options = {"bind": "127.0.0.1", "port": str(port), "save": "", "appendonly": "no", "dir": "/"}
    argv = [command, *(word for key, value in options.items() for word in (f"--{key}", value))]
    server = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        _wait_until_up(server, port)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.kill()  # it has nothing to save
        server.communicate()


def _wait_until_up(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_WITHIN
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"PING\r\n")
            if client.recv(100).startswith(b"+PONG"):
                return
        time.sleep(0.02)
    server.kill()
    said = server.communicate()[0].decode(errors="replace")
    raise AssertionError(f"redis-server did not start:\n{said}")
