"""A real worker of a queue in a process group of its own, and what it says and writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lifeguard.testing import Postgres
from tests.support.eventlog import ENV, Event, EventLog
from tests.support.overlay import overlay

ROOT = Path(__file__).resolve().parents[2]

END_WITHIN = 60.0


@dataclass
class Worker:
    """A worker, its children, its event log, and the names of its connections."""

    popen: subprocess.Popen[bytes]
    output: Path
    log: EventLog
    name: str
    """What the application_name of each of its connections begins with."""

    @property
    def pid(self) -> int:
        return self.popen.pid

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def events(self, *names: str) -> list[Event]:
        return self.log.read(*names)

    def count(self, name: str) -> int:
        return self.log.count(name)

    def pids(self, name: str) -> set[int]:
        """The processes that wrote such an event."""
        return set(self.log.per_pid(name))

    def wait_for_output(self, text: str, n: int = 1, timeout: float = 60.0) -> None:
        """Wait until it has said *text* that often."""
        deadline = time.monotonic() + timeout
        while self.said().count(text) < n:
            assert time.monotonic() < deadline, f"{n} x {text!r} not said:\n{self.said()}"
            time.sleep(0.02)

    def wait_for(self, name: str, n: int = 1, timeout: float = 60.0) -> list[Event]:
        """The events of this name, once there are *n*. A worker that ends before that fails."""
        deadline = time.monotonic() + timeout
        while True:
            running = self.popen.poll() is None
            events = self.log.read(name)
            if len(events) >= n:
                return events
            assert running, f"it ended before {n} x {name!r}:\n{self.said()}"
            assert time.monotonic() < deadline, f"{len(events)} x {name!r}:\n{self.said()}"
            time.sleep(0.01)

    def send(self, signum: int = signal.SIGTERM) -> None:
        self.popen.send_signal(signum)

    def wait(self, timeout: float = END_WITHIN) -> int:
        """Its exit status. One that does not end is a failure."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end:\n{self.said()}") from None

    def stop(self, signum: int = signal.SIGTERM) -> int:
        self.send(signum)
        return self.wait()

    def kill(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.popen.wait()
        self.log.close()


@dataclass
class Workers:
    """``start("-m", "arq", ...)``: workers that are ended with the test."""

    pg: Postgres
    name: str
    broker: str
    folder: Path
    started: list[Worker]

    @property
    def next_name(self) -> str:
        """Of the worker that is started next: jobs may wait for it in its queue."""
        return f"{self.name}{len(self.started)}:"

    def __call__(
        self, *argv: str, bare: bool = False, versions: str | None = None, **environ: str
    ) -> Worker:
        """Start ``python ARGV``. What it needs to know is in its environment (APP_...)."""
        number = len(self.started)
        name = self.next_name
        log = EventLog(self.folder / f"events-{number}.jsonl")
        output = self.folder / f"output-{number}.txt"
        path = [*([str(overlay(versions))] if versions else []), str(ROOT)]
        with output.open("wb") as file:
            popen = subprocess.Popen(
                [sys.executable, *argv],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path),
                    "PYTHONUNBUFFERED": "1",
                    "APP_DSN": self.pg.named(name),
                    "APP_BROKER": self.broker,
                    "APP_QUEUE": name,
                    ENV: str(log.path),
                    **({"APP_BARE": "1"} if bare else {}),
                    **environ,
                },
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        worker = Worker(popen, output, log, name)
        self.started.append(worker)
        return worker
