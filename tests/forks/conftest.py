from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lifeguard.testing import Postgres
from tests.support.eventlog import ENV, EventLog
from tests.support.tls import tls_postgres

ROOT = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of a module waits for all that a program does, and for an overlay."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def pg_with_tls() -> Iterator[Postgres]:
    with tls_postgres() as server:
        yield server


@pytest.fixture(params=["plain", "tls"])
def pg(request: pytest.FixtureRequest) -> Postgres:
    """Each test with a connection that is encrypted, and with one that is not.

    With TLS two processes on one connection do not even get wrong answers: each has its own idea
    of the cipher's state. What a child sends at its end breaks the parent's connection, too.
    """
    name = {"plain": "pg_without_tls", "tls": "pg_with_tls"}[request.param]
    server: Postgres = request.getfixturevalue(name)
    return server


@pytest.fixture(scope="session")
def pg_without_tls() -> Iterator[Postgres]:
    from lifeguard.testing import postgres

    with postgres() as server:
        yield server


@dataclass
class Program:
    """A program in a process group of its own, children and all."""

    popen: subprocess.Popen[bytes]
    output: Path
    log: EventLog

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def wait(self, timeout: float = 120.0) -> int:
        """Its exit status. One that hangs is a failure."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it hangs:\n{self.said()}") from None

    def kill(self) -> None:
        try:
            os.killpg(self.popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.popen.wait()


Start = Callable[..., Program]


@pytest.fixture
def start(dsn: str, tmp_path: Path, eventlog: EventLog) -> Iterator[Start]:
    """Start ``python ARGUMENTS`` with this test's DSN and event log. It is ended with the test."""
    started: list[Program] = []

    def start(*arguments: str, **environ: str) -> Program:
        output = tmp_path / f"output-{len(started)}.txt"
        with output.open("wb") as file:
            popen = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "PYTHONUNBUFFERED": "1",
                    "APP_DSN": dsn,
                    ENV: str(eventlog.path),
                    **environ,
                },
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        program = Program(popen, output, eventlog)
        started.append(program)
        return program

    yield start
    for program in started:
        program.kill()
