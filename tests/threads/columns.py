"""Starts the columns of the table, and reads their cells as they come."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from lifeguard.testing import Postgres
from tests.support.eventlog import EventLog
from tests.support.overlay import overlay
from tests.threads.kinds import DjangoAge0
from tests.threads.ways import WAYS

ROOT = Path(__file__).resolve().parents[2]
WITHIN = 200.0

OVERLAYS = {"APScheduler 4": "apscheduler4"}


def ways_of(kind: str) -> list[str]:
    """All ways, but for those that show nothing with this kind."""
    # The places of a pool in other processes cannot be seen from here.
    return [way for way in WAYS if way != "APScheduler 3, processes" or kind == DjangoAge0.name]


@dataclass
class Column:
    pid: int
    log: EventLog
    output: Path

    def cell(self, way: str) -> dict[str, Any]:
        def is_there(events: list[Any]) -> bool:
            return any(event["way"] == way for event in events) or self.has_ended()

        events = self.log.wait(is_there, "cell", timeout=WITHIN)
        for event in events:
            if event["way"] == way:
                assert event["error"] is None, f"{self.said()}\n{event['error']}"
                return event.extra
        raise AssertionError(f"{way!r} did not come:\n{self.said()}")

    def has_ended(self) -> bool:
        return psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE

    def said(self) -> str:
        return self.output.read_text(errors="replace")[-6000:] if self.output.exists() else ""


class Columns:
    """One program that forks a child for each column that somebody asks for."""

    def __init__(self, pg: Postgres, folder: Path) -> None:
        self.pg = pg
        self.folder = folder
        self.numbers = itertools.count(1)
        self.errors = (folder / "program.txt").open("wb")
        self.columns: dict[tuple[str, bool, tuple[str, ...]], Column] = {}
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tests.threads.program"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            start_new_session=True,
        )

    def column(self, kind: str, guarded: bool, ways: Sequence[str]) -> Column:
        key = kind, guarded, tuple(ways)
        if key not in self.columns:
            self.columns[key] = self.start(*key)
        return self.columns[key]

    def both(
        self, kind: str, way: str, ways: Sequence[str] = ()
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """A cell bare, and guarded. The two columns, of *ways*, run beside each other."""
        ways = ways or ways_of(kind)
        bare, guarded = (self.column(kind, side, ways) for side in (False, True))
        return bare.cell(way), guarded.cell(way)

    def start(self, kind: str, guarded: bool, ways: Sequence[str]) -> Column:
        number = next(self.numbers)
        log = EventLog(self.folder / f"events-{number}.jsonl")
        output = self.folder / f"output-{number}.txt"
        request = {
            "kind": kind,
            "guarded": guarded,
            "appname": f"threads.{os.getpid()}.{number}.",
            "dsn": self.pg.dsn,
            "log": str(log.path),
            "output": str(output),
            "ways": ways,
            "overlays": {way: str(overlay(name)) for way, name in OVERLAYS.items() if way in ways},
        }
        assert self.popen.stdin is not None and self.popen.stdout is not None
        self.popen.stdin.write(json.dumps(request) + "\n")
        self.popen.stdin.flush()
        return Column(int(self.popen.stdout.readline()), log, output)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout, self.errors):
            if stream is not None:
                stream.close()
        for column in self.columns.values():
            column.log.close()


@contextlib.contextmanager
def columns(pg: Postgres, folder: Path) -> Iterator[Columns]:
    made = Columns(pg, folder)
    try:
        yield made
    finally:
        made.close()
