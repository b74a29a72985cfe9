"""The table of docs/fork.md: ``python -m tests.forks.table``. Answers of 110, without lifeguard and
with it, with TLS and without, and what became of the rest within 9 seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lifeguard.testing import Postgres, postgres
from tests.forks.test_answers import KINDS
from tests.support.eventlog import ENV, EventLog
from tests.support.tls import tls_postgres

SECONDS = 9.0


def run(pg: Postgres, kind: str, bare: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        log = EventLog(Path(folder) / "events.jsonl")
        environ = {"APP_DSN": pg.dsn, "KIND": kind, "WAY": "os.fork", "APP_BARE": bare}
        program = subprocess.Popen(
            [sys.executable, "-m", "tests.forks.apps.answers"],
            env={**os.environ, **environ, ENV: str(log.path)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + SECONDS
        while program.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        try:
            os.killpg(program.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        program.wait()
        # Without the two questions that the parent asks alone.
        answers = [event for event in log.read("answer") if event["backend"] is not None]
        alone = 1 + (len(answers) == 112)
        right = sum(event["right"] for event in answers) - alone
        wrong = len(answers) - alone - right
        failed = log.count("failed")
        log.close()
    return f"{right} right, {wrong} wrong, {failed} failed, {110 - right - wrong - failed} never"


def main() -> None:
    with postgres() as plain, tls_postgres() as tls:
        for kind in KINDS:
            cells = [run(pg, kind, bare) for bare in ("1", "") for pg in (plain, tls)]
            print("|", " | ".join([kind, *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
