"""Ports that nobody else takes before the server that was told of them does.

A port that was free a moment ago may be somebody else's by the time a server has been imported:
the kernel gives it to the next who asks for any, and tests of two Pythons run side by side. So
these are below the range that it gives from, and each process has a block of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import itertools
import os
import socket
from collections.abc import Iterator

_LOWEST, _HIGHEST, _SIZE = 10_000, 32_000, 400
_owned: dict[int, Iterator[int]] = {}


def free_port() -> int:
    """One that nobody listens on, and that no other process of these tests is told of."""
    ports = _owned.get(os.getpid())
    if ports is None:
        ports = _owned[os.getpid()] = _own()
    for port in itertools.islice(ports, _SIZE):
        with contextlib.closing(socket.socket()) as probe:
            if _takes(probe, port):
                return port
    raise RuntimeError(f"all {_SIZE} ports of this process are taken")


def _own() -> Iterator[int]:
    """The ports of a block, over and over. Who holds the first one has the others."""
    for first in range(_LOWEST, _HIGHEST, _SIZE):
        claim = socket.socket()
        if _takes(claim, first):
            atexit.register(claim.close)
            return itertools.cycle(range(first + 1, first + _SIZE))
        claim.close()
    raise RuntimeError("all blocks of ports are taken")


def _takes(sock: socket.socket, port: int) -> bool:
    try:
        sock.bind(("127.0.0.1", port))
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            raise
        return False
    return True
