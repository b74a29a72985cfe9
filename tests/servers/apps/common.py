"""What both apps of the matrix share: the event log, the gates, and the bare pool."""

from __future__ import annotations

import atexit
import os
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from psycopg_pool import ConnectionPool

from tests.support.eventlog import EventLog

DSN = os.environ["APP_DSN"]
BARE = bool(os.environ.get("APP_BARE"))
SIZE: dict[str, Any] = {"min_size": 1, "max_size": 2, "timeout": 5.0}
"""Small, so that a connection that is not given back is missed by the next requests."""

log = EventLog.from_env()
_gates = Path(os.environ["APP_GATES"])


def request_id(query: str) -> str:
    return parse_qs(query)["id"][0]


def gate_is_open(request: str) -> bool:
    return (_gates / request).exists()


class BarePool:
    """What people write without lifeguard: opened by the first request, closed by ``atexit``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ConnectionPool | None = None

    def get(self) -> ConnectionPool:
        with self._lock:
            if self._pool is None:
                self._pool = ConnectionPool(DSN, open=True, **SIZE)
                log.write("opened")
                atexit.register(self._close, self._pool)
            return self._pool

    @staticmethod
    def _close(pool: ConnectionPool) -> None:
        pool.close()
        log.write("closed")
