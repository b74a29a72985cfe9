"""examples/threads, by its one command."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from psycopg_pool import ConnectionPool

import lifeguard
from lifeguard.testing import Postgres
from tests.examples.server import ROOT


def test_one_command(pg: Postgres, appname: str, dsn: str) -> None:
    ended = subprocess.run(
        [sys.executable, "examples/run.py", "threads", "--jobs=500", "--threads=8"],
        cwd=ROOT,
        env={**os.environ, "LIFEGUARD_DSN": dsn},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "500 jobs: 500 charged, 10 failed, 500 receipts\n"
    # Ten jobs forgot theirs, out of a pool of four: each was taken back, and was told about.
    assert ended.stderr.count("was not given back by the unit's end") == 10
    assert pg.wait_count(0, prefix=appname) == 0


def in_a_thread(func: Callable[[], None]) -> None:
    thread = threading.Thread(target=func)
    thread.start()
    thread.join()


def test_the_stack_of_a_leak_shows_who_borrowed_and_not_how_threads_begin(
    pg: Postgres, appname: str, dsn: str
) -> None:
    guard = lifeguard.Lifeguard(stack=8)
    pool = ConnectionPool(dsn, open=False, min_size=1, max_size=2)

    @guard.task
    def forget() -> None:
        pool.getconn()

    with guard.worker(resources=[pool]):
        with pytest.warns(lifeguard.LeakWarning) as warned:
            in_a_thread(forget)
    message = str(warned[0].message)
    assert "test_threads.py" in message.splitlines()[-1]
    assert "threading.py" not in message
    assert pg.wait_count(0, prefix=appname) == 0
