"""jcass77/django-apscheduler#172: a command with threads fills the database, once it is scheduled.

Run by hand it is fine: its process ends. Run by a scheduler, the process stays, and each run makes
an executor whose threads end with it. What Django keeps in a thread is not closed with the thread:
it is part of a cycle, and waits for the garbage collector. Where that comes rarely (a big program,
``gc.freeze()``, ``gc.disable()``), four threads at a time use up a PostgreSQL of a hundred
connections in two dozen runs, in less than a second; with a larger one they go on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lifeguard.testing import postgres
from tests.incidents.seeds.deploying import Database, Process, database, deployed
from tests.support.overlay import overlay

SLOTS, THREADS = 100, 4
BATCHES, FEWER = 500, 60
PROGRAM = "tests.incidents.seeds.multithreaded.program"
FULL = ("remaining connection slots are reserved", "too many clients already")

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def db() -> Iterator[Database]:
    """In a PostgreSQL with a hundred connections, three of them reserved. No other one will do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LIFEGUARD_DSN", raising=False)
        with postgres(max_connections=SLOTS) as pg, database(pg, "multithreaded") as db:
            yield db


@dataclass
class Run:
    """One process, and what it said at its end."""

    process: Process
    peak: Any

    def end(self, timeout: float = 120.0) -> dict[str, Any]:
        assert self.process.popen.wait(timeout) == 0, self.process.said()
        said: dict[str, Any] = json.loads(self.process.said().splitlines()[-1])
        return {**said, "peak": self.peak.connections}


class Runs:
    """Starts them. Each is the only one that its database has."""

    def __init__(self, db: Database, folder: Path, stack: ExitStack) -> None:
        self.db = db
        self.folder = folder
        self.stack = stack

    def start(
        self,
        *,
        guarded: bool,
        batches: int = FEWER,
        gc: str = "disabled",
        django: str | None = None,
        age: int = 0,
        **env: str,
    ) -> Run:
        enter = self.stack.enter_context
        name = f"run_{len(self.folder_of_each())}"
        folder = self.folder / name
        folder.mkdir()
        db = enter(database(self.db.pg, name))
        side = enter(
            deployed(
                "tests.incidents.seeds.multithreaded.settings",
                db,
                folder,
                guarded=guarded,
                overlays=(overlay(django),) if django else (),
                SEED_BATCHES=str(batches),
                SEED_GC=gc,
                SEED_CONN_MAX_AGE=str(age),
                **env,
            )
        )
        return Run(side.start(PROGRAM), enter(db.watched()))

    def folder_of_each(self) -> list[Path]:
        return list(self.folder.iterdir())


@pytest.fixture
def runs(db: Database, tmp_path: Path) -> Iterator[Runs]:
    with ExitStack() as stack:
        yield Runs(db, tmp_path, stack)


@pytest.mark.parametrize("django", ["django42", None])
def test_seed_multithreaded(runs: Runs, django: str | None) -> None:
    """Bare, the database is full after two dozen runs: four threads at a time, a hundred
    connections. Guarded (``lifeguard.django`` in INSTALLED_APPS, no other line), 500 runs have four
    connections; and so they have with lifeguard's executor in place of the standard one.

    (Sixty runs are enough to see it: bare, they need 240. One of the Djangos is asked for 500.)
    """
    bare = runs.start(guarded=False, django=django).end()
    assert any(words in bare["error"] for words in FULL), bare
    assert SLOTS // THREADS - 5 <= bare["batches"] <= SLOTS // THREADS

    many = FEWER if django else BATCHES
    net = runs.start(guarded=True, django=django, batches=many)
    executor = runs.start(guarded=True, django=django, batches=FEWER, SEED_EXECUTOR="lifeguard")
    for run, batches in ((net, many), (executor, FEWER)):
        guarded = run.end()
        assert (guarded["batches"], guarded["error"]) == (batches, ""), guarded
        # A backend leaves a moment after its client: there may be one such for each thread.
        assert guarded["peak"] <= 2 * THREADS
        assert guarded["django"] == bare["django"]


def test_seed_multithreaded_with_a_collector_that_comes_rarely(runs: Runs) -> None:
    """``gc.freeze()`` and high thresholds, as processes have them that fork many children."""
    bare = runs.start(guarded=False, gc="frozen").end()
    assert any(words in bare["error"] for words in FULL), bare
    guarded = runs.start(guarded=True, gc="frozen", batches=FEWER).end()
    assert (guarded["batches"], guarded["error"]) == (FEWER, ""), guarded
    assert guarded["peak"] <= 2 * THREADS


def test_seed_multithreaded_with_the_collector_as_it_is(runs: Runs) -> None:
    """Bare, it comes in time for a hundred connections, but there are many times as many as there
    are threads. Guarded, nothing waits for it."""
    bare = runs.start(guarded=False, gc="default")
    guarded = runs.start(guarded=True, gc="default")
    assert bare.end()["peak"] >= 5 * THREADS
    assert guarded.end()["peak"] <= 2 * THREADS


def test_seed_multithreaded_with_a_native_pool(runs: Runs) -> None:
    """Bare, the second run waits in vain: the threads of the first took the pool's four connections
    with them, and they do not come back with the garbage collector, either. Guarded, they do, while
    each thread ends."""
    bare = runs.start(guarded=False, SEED_POOL="1").end()
    assert bare["batches"] == 1
    assert "couldn't get a connection" in bare["error"]
    assert (bare["size"], bare["available"]) == (THREADS, 0)

    guarded = runs.start(guarded=True, batches=FEWER, SEED_POOL="1").end()
    assert (guarded["batches"], guarded["error"]) == (FEWER, ""), guarded
    assert guarded["size"] == guarded["available"] <= THREADS
    assert guarded["peak"] <= 2 * THREADS
