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
from tests.forks.test_processes import CODE
from tests.support.eventlog import ENV, Event, EventLog
from tests.support.tls import tls_postgres

SECONDS = 9.0


def run(pg: Postgres, bare: str, *command: str, **environ: str) -> tuple[list[Event], int]:
    """The answers that came in time, and how many questions failed."""
    with tempfile.TemporaryDirectory() as folder:
        log = EventLog(Path(folder) / "events.jsonl")
        program = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, "APP_DSN": pg.dsn, "APP_BARE": bare, ENV: str(log.path), **environ},
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
        answers = [event for event in log.read("answer") if event["backend"] is not None]
        failed = log.count("failed")
        log.close()
    return answers, failed


def three(pg: Postgres, kind: str, bare: str) -> str:
    """Two children and their parent: test_answers.py."""
    program = ("-m", "tests.forks.apps.answers")
    answers, failed = run(pg, bare, *program, KIND=kind, WAY="os.fork")
    # Without the two questions that the parent asks alone.
    alone = 1 + (len(answers) == 112)
    right = sum(event["right"] for event in answers) - alone
    return _cell(right, len(answers) - alone - right, failed)


def four(pg: Postgres, kind: str, bare: str) -> str:
    """Four children of an executor: test_processes.py."""
    environ = {"KINDS": kind, "METHOD": "fork", "WAYS": "executor"}
    answers, failed = run(pg, bare, "-c", CODE, **environ)
    right = sum(event["right"] for event in answers)
    return _cell(right, len(answers) - right, failed)


def _cell(right: int, wrong: int, failed: int) -> str:
    return f"{right} right, {wrong} wrong, {failed} failed, {110 - right - wrong - failed} never"


def main() -> None:
    rows = [(three, kind) for kind in KINDS] + [
        (four, kind) for kind in ("django", "native", "engine")
    ]
    with postgres() as plain, tls_postgres() as tls:
        for ask, kind in rows:
            cells = [ask(pg, kind, bare) for bare in ("1", "") for pg in (plain, tls)]
            print("|", " | ".join([kind, *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
