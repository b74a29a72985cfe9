"""What both apps share: the guard, the event log, the gates, and the bare pool."""

from __future__ import annotations

import atexit
import os
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool

import lifeguard
from tests.support.eventlog import EventLog

BARE = bool(os.environ.get("APP_BARE"))
SIZE: dict[str, Any] = {"min_size": 2, "max_size": 2, "timeout": 5.0}
"""Small, so that a connection that is not given back is missed by the next requests. And of one
size, and waited for, so that none is just being made when a worker ends: uWSGI runs Python's exit
handlers after OpenSSL's, and then that one fails."""

QUERY = 8
"""Seconds of the query of those who are to be killed in the middle of it."""

log = EventLog.from_env()
guard = lifeguard.Lifeguard(
    grace=float(os.environ.get("APP_GRACE", "10")),
    die_with_parent=bool(os.environ.get("APP_DIE_WITH_PARENT")),
)
_gates = Path(os.environ["APP_GATES"])


def dsn() -> str:
    """How this process connects: its pid is in the application_name."""
    name = f"{os.environ['APP_NAME']}{os.getpid()}."
    return make_conninfo(os.environ["APP_DSN"], application_name=name)


def request_id(query: str) -> str:
    return parse_qs(query)["id"][0]


def gate_is_open(request: str) -> bool:
    return (_gates / request).exists()


def wait_at_gate(request: str) -> None:
    """Block until the gate opens, or for so long that whoever was to open it has given up."""
    deadline = time.monotonic() + 20
    while not gate_is_open(request) and time.monotonic() < deadline:
        time.sleep(0.01)


class BarePool:
    """What people write without lifeguard: opened by the first request, closed by ``atexit``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ConnectionPool | None = None

    def get(self) -> ConnectionPool:
        with self._lock:
            if self._pool is None:
                self._pool = ConnectionPool(dsn(), open=True, **SIZE)
                self._pool.wait()
                log.write("opened")
                atexit.register(self._close, self._pool)
            return self._pool

    @staticmethod
    def _close(pool: ConnectionPool) -> None:
        pool.close()
        log.write("closed")
