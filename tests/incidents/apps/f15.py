"""A Celery worker that forks for each of its tasks, and whose heartbeat has a thread."""

from __future__ import annotations

import os
import signal
import threading
import time

from billiard.context import Process
from psycopg_pool import NullConnectionPool

from tests.incidents.apps import DSN, GUARDED, PATIENCE, log

wanted, granted = threading.Event(), threading.Event()


def conninfo() -> str:
    """With a password that somebody else makes for each connection, sooner or later."""
    if threading.current_thread().name == "heartbeat":
        wanted.set()
        granted.wait(60)
    return DSN


pool = NullConnectionPool(conninfo, max_size=4, timeout=PATIENCE, open=False)


def query() -> None:
    with pool.connection() as conn:
        conn.execute("SELECT 1")


def run_task() -> None:
    child = os.fork()
    if child == 0:
        query()
        log.write("task done")
        os._exit(0)
    deadline = time.monotonic() + (40 if GUARDED else 5)
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return
        time.sleep(0.01)
    log.write("task hangs")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def work() -> None:
    heartbeat = threading.Thread(target=query, name="heartbeat")
    heartbeat.start()
    wanted.wait(60)
    run_task()
    granted.set()
    heartbeat.join()


def worker() -> None:
    if GUARDED:
        import lifeguard

        with lifeguard.worker(resources=[pool]):
            work()
    else:
        with pool:
            work()


if __name__ == "__main__":
    process = Process(target=worker)
    process.start()
    process.join()
