"""An HTTP client in a process of its own, so that its work is not charged to a server.

It keeps so many connections busy for a while, each with one request after the other, and says how
long each answer took. Orders come on stdin and figures go to stdout, a line of JSON each.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

__all__ = ["Client", "Shots", "client"]

PATIENCE = 30.0
"""Seconds until an answer that did not come counts as an error."""


@dataclass(frozen=True)
class Shots:
    """What came of one order: seconds each answer took, the whole time, and what went wrong."""

    took: list[float]
    seconds: float
    errors: list[str]


class Client:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def shoot(self, port: int, path: str, *, connections: int, seconds: float) -> Shots:
        """Keep ``connections`` busy with requests for ``path`` for so many seconds."""
        order = {"port": port, "path": path, "connections": connections, "seconds": seconds}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process of the HTTP client died")
        return Shots(**json.loads(line))


@contextmanager
def client() -> Iterator[Client]:
    """A client's process for the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench._client"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Client(process)
    finally:
        process.communicate()  # the end of its stdin ends it


class Connection(asyncio.Protocol):
    """One keep-alive connection. As little Python per request as there can be."""

    def __init__(self, request: bytes, until: float, shots: Shots) -> None:
        self.request = request
        self.until = until
        self.shots = shots
        self.answer = b""
        self.sent = 0.0
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.next()

    def next(self) -> None:
        self.answer = b""
        self.sent = perf_counter()
        if self.sent >= self.until:
            self.end()
        else:
            self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.answer += data
        head, found, body = self.answer.partition(b"\r\n\r\n")
        if not found or len(body) < length(head):
            return
        if head.startswith(b"HTTP/1.1 200 "):
            self.shots.took.append(perf_counter() - self.sent)
            self.next()
        else:
            # A server that fails at once would otherwise look like a fast one.
            self.end(head.partition(b"\r\n")[0].decode(errors="replace"))

    def connection_lost(self, error: Exception | None) -> None:
        self.end(f"the connection was closed ({error})")

    def end(self, error: str | None = None) -> None:
        if not self.over.done():
            self.over.set_result(None)
            if error is not None:
                self.shots.errors.append(error)
            self.transport.close()


def length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    raise ValueError("an answer without a content-length is more than this client understands")


async def carry_out(port: int, path: str, connections: int, seconds: float) -> Shots:
    shots = Shots([], 0.0, [])
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    begin = perf_counter()
    until = begin + seconds
    loop = asyncio.get_running_loop()

    async def keep_busy() -> None:
        """One that ended in an error is replaced, as a browser would, until the time is up."""
        while perf_counter() < until:
            try:
                _, connection = await loop.create_connection(
                    lambda: Connection(request, until, shots), "127.0.0.1", port
                )
            except OSError as error:
                shots.errors.append(str(error))
                return
            try:
                await asyncio.wait_for(asyncio.shield(connection.over), seconds + PATIENCE)
            except TimeoutError:
                connection.end(f"no answer within {PATIENCE:.0f} s")

    async with asyncio.TaskGroup() as busy:
        for _ in range(connections):
            busy.create_task(keep_busy())
    return Shots(shots.took, perf_counter() - begin, shots.errors)


def main() -> None:
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            shots = runner.run(carry_out(**json.loads(line)))
            print(json.dumps(vars(shots)), flush=True)


if __name__ == "__main__":
    main()
