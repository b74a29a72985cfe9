"""Four child processes and what their parent has open: each answer is the one that was asked for.

The objects are Django's connections and native pools, a pool and a connection of psycopg, and an
engine of SQLAlchemy; the processes come from an executor, from multiprocessing and from billiard.
One program per start method asks all of it, and the tests read what it wrote: they stand apart from
test_answers.py, where a program has one object and two children.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lifeguard.testing import Postgres
from tests.forks.conftest import ROOT, Start
from tests.support.eventlog import ENV, Event, EventLog

KINDS = ("django", "native", "pool", "connection", "engine")
WAYS = {
    "fork": ("executor", "pool", "billiard"),
    "forkserver": ("executor", "pool"),
    "spawn": ("executor",),  # a fresh interpreter is dear, and inherits nothing
}
CODE = "from tests.forks.apps import processes; processes.main()"


@dataclasses.dataclass
class Run:
    """What one program wrote, and what it left."""

    parent: int
    events: list[Event]
    said: str
    left: int

    def of(self, name: str, kind: str, way: str) -> list[Event]:
        return [e for e in self.events if e.event == name and (e["kind"], e["way"]) == (kind, way)]


@pytest.fixture(scope="module")
def runs(
    pg_without_tls: Postgres, pg_with_tls: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Run]:
    """The program with one kind of connection and one start method, run once."""

    @functools.cache
    def run(connection: str, method: str) -> Run:
        folder = tmp_path_factory.mktemp(f"{connection}-{method}")
        log = EventLog(folder / "events.jsonl")
        server = pg_with_tls if connection == "tls" else pg_without_tls
        try:
            return _run(method, server, log, folder / "output.txt")
        finally:
            log.close()

    return run


def _run(method: str, server: Postgres, log: EventLog, output: Path) -> Run:
    name = f"forks-{method}"
    with output.open("wb") as file:
        program = subprocess.Popen(
            [sys.executable, "-c", CODE],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "APP_DSN": server.named(name),
                "METHOD": method,
                "KINDS": ",".join(KINDS),
                "WAYS": ",".join(WAYS[method]),
                ENV: str(log.path),
            },
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        status = program.wait(200)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        try:
            os.killpg(program.pid, 9)
        except ProcessLookupError:
            pass
        program.wait()
    said = output.read_text(errors="replace")
    assert status == 0, f"status {status}:\n{said}"
    return Run(program.pid, log.read(), said, server.wait_count(0, prefix=name))


PROGRAMS = [(connection, method) for method in WAYS for connection in ("plain", "tls")]
PROGRAMS.remove(("plain", "spawn"))  # where nothing is inherited, they do not differ
CELLS = [(*program, way) for program in PROGRAMS for way in WAYS[program[1]]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("connection", "method", "way"), CELLS)
def test_every_answer_is_right(
    connection: str, method: str, way: str, kind: str, runs: Callable[[str, str], Run]
) -> None:
    """110 of 110, from backends that serve one process each; and the parent's transaction, which
    was open all the time, goes on."""
    run = runs(connection, method)
    assert run.of("failed", kind, way) == [], run.said
    answers = run.of("answer", kind, way)
    assert [event["right"] for event in answers] == [True] * 110
    served: dict[int, set[int]] = {}
    for event in answers:
        served.setdefault(event["backend"], set()).add(event.pid)
    assert all(len(pids) == 1 for pids in served.values()), f"shared backends: {served}"
    assert run.parent not in set.union(*served.values())
    assert [event["same"] for event in run.of("after", kind, way)] == [True]


@pytest.mark.parametrize(("connection", "method"), PROGRAMS)
def test_nothing_is_left(connection: str, method: str, runs: Callable[[str, str], Run]) -> None:
    """Each child of an executor closes its worker once, at its end, and so does the parent. No
    connection is left, not even of processes that end without a word."""
    run = runs(connection, method)
    assert run.left == 0
    closed = [event for event in run.events if event.event == "closed"]
    children = {event.pid for event in run.of("answer", "connection", "executor")}
    assert {run.parent, *children} <= {event.pid for event in closed}
    assert len(closed) == len({event.pid for event in closed})
    assert all(event["errors"] == "[]" for event in closed)


@pytest.mark.parametrize("kind", ["django", "native", "engine"])
def test_bare_they_are_not(kind: str, start: Start, pg: Postgres) -> None:
    """The same without lifeguard: answers of others, or errors."""
    program = start("-c", CODE, METHOD="fork", WAYS="executor", KINDS=kind, APP_BARE="1")

    def is_wrong(events: list[Event]) -> bool:
        return any(event.event == "failed" or not event["right"] for event in events)

    events = program.log.wait(is_wrong, "answer", "failed", timeout=20)
    program.kill()  # no need to see how wrong
    hung = len(events) < 110  # each waits for an answer that another one has got
    assert is_wrong(events) or hung, program.said()
