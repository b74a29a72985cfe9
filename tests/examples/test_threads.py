"""examples/threads, by its one command."""

from __future__ import annotations

import os
import subprocess
import sys

from lifeguard.testing import Postgres
from tests.examples.server import ROOT


def test_one_command(pg: Postgres, appname: str, dsn: str) -> None:
    ended = subprocess.run(
        [sys.executable, "examples/run.py", "threads", "--jobs=500", "--threads=8"],
        cwd=ROOT,
        env={**os.environ, "LIFEGUARD_DSN": dsn},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "500 jobs: 500 charged, 10 failed, 500 receipts\n"
    # Ten jobs forgot theirs, out of a pool of four: each was taken back, and was told about.
    assert ended.stderr.count("was not given back by the unit's end") == 10
    assert pg.wait_count(0, prefix=appname) == 0
    assert "threading.py" not in ended.stderr  # the stack shows who borrowed, not how threads begin
