"""Queries that may outlive whoever sent them: PostgreSQL's own view of them."""

from __future__ import annotations

import socket
import time

import psutil

from lifeguard.testing import Postgres
from tests.incidents.serving import Process


def abandon_query(process: Process) -> int:
    """Ask, and wait until the worker that asks PostgreSQL is gone. Returns the backend."""
    with socket.create_connection(("127.0.0.1", process.port), timeout=40) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        assert process.log.wait_count("working", 1) == 1, process.said()
        (event,) = process.log.read("working")
        gone, _ = psutil.wait_procs([psutil.Process(event.pid)], timeout=40)
        assert gone, process.said()
    backend: int = event["backend"]
    return backend


def is_running(pg: Postgres, backend: int) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND state = 'active'"
    with pg.connect() as connection:
        row = connection.execute(query, [backend]).fetchone()
    return row is not None and row[0] == 1


def wait_until_ended(pg: Postgres, backend: int, timeout: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout
    while is_running(pg, backend):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def terminate(pg: Postgres, backend: int) -> None:
    with pg.connect() as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", [backend])


def wait_until_blocked(pg: Postgres, key: int) -> None:
    """Wait until somebody waits for the advisory lock *key*: the query has reached the server."""
    query = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        " AND (classid::bigint << 32 | objid::bigint) = %s"
    )
    with pg.connect() as connection:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            row = connection.execute(query, [key]).fetchone()
            if row and row[0]:
                return
            time.sleep(0.01)
    raise AssertionError("nobody waits for the lock")
