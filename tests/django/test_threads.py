"""Threads, executors and tasks of a Django project, in programs without a server.

Django's connections belong to threads, and what closes them belongs to requests. Here is
everything else: each test says what is left on a real PostgreSQL without ``lifeguard.django`` in
INSTALLED_APPS, and with it. Both sides are the same program (threads/scenarios.py), and its
garbage collector is off.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lifeguard.testing import Postgres
from tests.support.eventlog import Event, EventLog

ROOT = Path(__file__).resolve().parents[2]
THREADS = 4
WITHIN = 20.0

#: CONN_MAX_AGE, and whether Django's native pool is on.
SETTINGS = {"age 0": (0, False), "age 60": (60, False), "native pool": (0, True)}


@dataclass
class Shown:
    """A program that waits for the test to look."""

    event: Event
    name: str
    pg: Postgres
    output: Path

    def __getitem__(self, key: str) -> Any:
        return self.event[key]

    def left(self, expected: int = 0, alias: str = "default") -> int:
        """How many connections it has, once there are as many as expected."""
        return self.pg.wait_count(expected, application_name=f"{self.name}{alias}", timeout=5)

    def rows(self, value: str) -> int:
        with self.pg.connect() as conn:
            row = conn.execute(
                "SELECT count(*) FROM lifeguard_threads WHERE value = %s", [f"{self.name}{value}"]
            ).fetchone()
        assert row is not None
        return int(row[0])


class Programs:
    """Starts them, one at a time."""

    def __init__(self, pg: Postgres, folder: Path) -> None:
        self.pg = pg
        self.folder = folder
        self.numbers = itertools.count(1)
        self.errors = (folder / "program.txt").open("wb")
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tests.django.threads.program"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    @contextlib.contextmanager
    def run(
        self,
        scenario: str,
        *,
        guarded: bool,
        setting: str = "age 0",
        aliases: tuple[str, ...] = ("default",),
        lifeguard: dict[str, Any] | None = None,
    ) -> Iterator[Shown]:
        age, pooled = SETTINGS[setting]
        folder = self.folder / str(next(self.numbers))
        folder.mkdir()
        name = f"{scenario.replace('_', '-')[:40]}.{os.getpid()}.{folder.name}."
        log = EventLog(folder / "events.jsonl")
        gate, output = folder / "gate", folder / "output.txt"
        request = {
            "scenario": scenario,
            "guarded": guarded,
            "age": age,
            "pooled": pooled,
            "aliases": aliases,
            "lifeguard": lifeguard or {},
            "name": name,
            "dsn": self.pg.dsn,
            "log": str(log.path),
            "gate": str(gate),
            "output": str(output),
        }
        assert self.popen.stdin is not None and self.popen.stdout is not None
        self.popen.stdin.write(json.dumps(request) + "\n")
        self.popen.stdin.flush()
        try:
            events = log.wait(bool, "shown", "failed", timeout=WITHIN)
            said = output.read_text() if output.exists() else ""
            assert events, f"{scenario} did not get anywhere:\n{said}"
            assert events[0].event == "shown", events[0]["error"] + said
            yield Shown(events[0], name, self.pg, output)
        finally:
            gate.touch()
            status = self.popen.stdout.readline().strip()
            log.close()
        said = output.read_text()
        assert status == "0", f"{scenario} ended with {status}:\n{said}"
        assert "Exception ignored" not in said and "Traceback" not in said, said
        assert self.pg.wait_count(0, prefix=name) == 0

    def close(self) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.close()
        try:
            assert self.popen.wait(WITHIN) == 0
        finally:
            self.popen.kill()
            self.popen.wait()
            if self.popen.stdout is not None:
                self.popen.stdout.close()
            self.errors.close()


@pytest.fixture(scope="module")
def programs(pg: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    with pg.connect() as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS lifeguard_threads (value text)")
    programs = Programs(pg, tmp_path_factory.mktemp("threads"))
    try:
        yield programs
    finally:
        programs.close()
        with pg.connect() as conn:
            conn.execute("DROP TABLE lifeguard_threads")


def left_behind(programs: Programs, scenario: str, *, guarded: bool, **options: Any) -> int:
    """What a scenario leaves: connections, or places in the native pool."""
    with programs.run(scenario, guarded=guarded, **options) as shown:
        if options.get("setting") == "native pool":
            lost: int = shown["lost"]
            return lost
        return shown.left(0 if guarded else THREADS)


# -- threads that live on -------------------------------------------------------------------------

LIVE = [
    "executor",
    "job_that_raises",
    "unit",
    "unit_that_raises",
    "unit_with_an_error_of_the_database",
    "task",
    "to_thread",
    "run_in_executor",
    "not_thread_sensitive",
    "to_thread_given_up",
]


@pytest.mark.parametrize("scenario", LIVE)
def test_a_thread_that_lives_on_has_no_connection_after_its_work(
    programs: Programs, scenario: str
) -> None:
    """Bare, each of four threads keeps a connection for as long as it lives. Guarded, all are
    closed when the work is done."""
    assert left_behind(programs, scenario, guarded=False) == THREADS
    assert left_behind(programs, scenario, guarded=True) == 0


@pytest.mark.parametrize("scenario", LIVE)
def test_the_native_pool_has_back_what_its_threads_had(programs: Programs, scenario: str) -> None:
    assert left_behind(programs, scenario, guarded=True, setting="native pool") == 0


@pytest.mark.parametrize("scenario", ["executor", "raw_threads"])
def test_bare_threads_empty_the_native_pool(programs: Programs, scenario: str) -> None:
    """Four threads, live or ended, and of a pool of four nothing is left."""
    assert left_behind(programs, scenario, guarded=False, setting="native pool") == THREADS


@pytest.mark.parametrize("scenario", ["executor", "foreign_executor"])
def test_the_age_of_connections_is_respected(programs: Programs, scenario: str) -> None:
    """CONN_MAX_AGE=60: the next jobs find the connections of the last ones."""
    lifeguard = {"EXECUTORS": True}
    with programs.run(scenario, guarded=True, setting="age 60", lifeguard=lifeguard) as shown:
        assert shown["again"]
        assert shown.left(THREADS) == THREADS


@pytest.mark.parametrize("setting", ["age 0", "native pool"])
def test_jobs_of_any_executor_are_units_where_that_is_asked_for(
    programs: Programs, setting: str
) -> None:
    """``LIFEGUARD = {"EXECUTORS": True}``: the standard library's executor, in code of others."""
    options: dict[str, Any] = {"setting": setting, "lifeguard": {"EXECUTORS": True}}
    assert left_behind(programs, "foreign_executor", guarded=True, **options) == 0


def test_jobs_of_foreign_executors_are_left_alone_unless_asked_for(programs: Programs) -> None:
    """Without the option their threads keep their connections until they end, as they do bare."""
    for guarded in (False, True):
        with programs.run("foreign_executor", guarded=guarded) as shown:
            assert shown.left(THREADS) == THREADS


@pytest.mark.parametrize("setting", ["age 0", "age 60"])
def test_threads_get_over_a_restart_of_the_database(programs: Programs, setting: str) -> None:
    """Bare, ``asyncio.to_thread`` fails for ever once the server has ended its connections.

    Guarded, with CONN_MAX_AGE=0 nobody notices; with an age, a thread fails once, as a request
    of Django's does.
    """
    with programs.run("recovers", guarded=False, setting=setting) as shown:
        first, second, third = in_rounds(shown["answers"])
        assert (errors(first), errors(second), errors(third)) == (0, THREADS, THREADS)
    with programs.run("recovers", guarded=True, setting=setting) as shown:
        first, second, third = in_rounds(shown["answers"])
        once = THREADS if setting == "age 60" else 0
        assert (errors(first), errors(second), errors(third)) == (0, once, 0)


def in_rounds(answers: list[str]) -> list[list[str]]:
    return [answers[n : n + THREADS] for n in range(0, 3 * THREADS, THREADS)]


def errors(answers: list[str]) -> int:
    return sum(not answer.isdecimal() for answer in answers)


def test_a_task_that_awaits_the_orm_leaves_nothing(programs: Programs) -> None:
    """An ``async def`` that is a ``lifeguard.task``. Bare, asgiref's thread keeps a connection."""
    with programs.run("async_task", guarded=False) as shown:
        assert shown.left(1) == 1
    with programs.run("async_task", guarded=True) as shown:
        assert shown.left(0) == 0


@pytest.mark.parametrize("setting", ["age 0", "native pool"])
def test_an_error_page_that_asks_the_database_leaves_nothing(
    programs: Programs, setting: str
) -> None:
    """Django renders its 500 page in the loop's default executor. With ``request.user`` in it,
    that is a connection for each thread there, of which nobody knows."""
    pooled = setting == "native pool"
    with programs.run("error_pages", guarded=False, setting=setting) as shown:
        assert shown["statuses"] == [500]
        assert shown["lost"] if pooled else shown.left(THREADS)
    with programs.run("error_pages", guarded=True, setting=setting) as shown:
        assert shown["statuses"] == [500]
        assert not (shown["lost"] if pooled else shown.left(0))


# -- threads that end -----------------------------------------------------------------------------

ENDING = [
    "raw_threads",
    "threads_that_raise",
    "threads_whose_wrapper_is_kept",
    "threads_whose_cursor_is_kept",
    "threads_whose_exception_is_kept",
    "threads_that_end_inside_atomic",
    "executor_that_ends",
    "asyncio_run_that_ends",
]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("scenario", ENDING)
def test_a_thread_that_ends_closes_its_connections(
    programs: Programs, scenario: str, setting: str
) -> None:
    """Nothing in such a program names lifeguard. Bare, every thread that ended has left its
    connection to the garbage collector, and a native pool never hears of it again."""
    if setting == "age 0":
        assert left_behind(programs, scenario, guarded=False) == THREADS
    assert left_behind(programs, scenario, guarded=True, setting=setting) == 0


def test_what_a_thread_had_not_committed_is_rolled_back(programs: Programs) -> None:
    """A thread that ends inside of ``atomic()`` has not said that it means it."""
    with programs.run("threads_that_end_inside_atomic", guarded=True) as shown:
        assert shown.left(0) == 0
        assert shown.rows("lost") == 0


def test_threads_that_are_cut_off_by_the_end_of_the_program_are_quiet(programs: Programs) -> None:
    """Daemon threads, in the middle of their queries: no traceback, and the status is 0."""
    with programs.run("daemons_at_exit", guarded=True) as shown:
        assert shown.left(THREADS) == THREADS


# -- whose connection it is -----------------------------------------------------------------------


def test_a_nested_unit_leaves_the_connection_to_the_outer_one(programs: Programs) -> None:
    """One backend from the first statement to the last, in and out of ``atomic()``; closed at the
    end of the outer unit. (Bare, nobody closes it.)"""
    for guarded in (False, True):
        with programs.run("nested_units", guarded=guarded) as shown:
            assert shown["backends"] == 1
            assert shown.rows("nested") == 4
            assert shown.left(0 if guarded else 1) == (0 if guarded else 1)


def test_a_unit_leaves_a_connection_that_was_there_before(programs: Programs) -> None:
    """A script that works with the database, and calls something that has units in it."""
    with programs.run("unit_in_a_thread_that_has_a_connection", guarded=True) as shown:
        assert shown["backends"] == 1


def test_a_unit_at_the_end_of_a_transaction_does_not_undo_it(programs: Programs) -> None:
    """A connection that is closed there loses what looks committed, without an exception."""
    with programs.run("unit_inside_atomic", guarded=True) as shown:
        assert shown.rows("atomic") == 2


def test_a_transaction_that_outlives_its_unit_is_left_alone(programs: Programs) -> None:
    with programs.run("unit_around_half_a_transaction", guarded=True) as shown:
        assert shown.rows("half") == 2


def test_jobs_leave_the_transaction_of_their_submitter_alone(programs: Programs) -> None:
    """Each job has a connection of its own. Bare, the thread keeps it."""
    for guarded in (False, True):
        with programs.run("executor_inside_atomic", guarded=guarded) as shown:
            assert shown["mine"] == 1
            assert not shown["shared"]
            assert shown.rows("submitter") == 2
            left = shown.left(0) if guarded else shown.left(1)
            assert bool(left) is not guarded


def test_no_done_callback_is_needed(programs: Programs) -> None:
    """The usual advice, ``future.add_done_callback(close_all)``, closes the submitter's connection
    when the job was quick: its transaction is gone without an exception, and the job's thread
    still has its own. Guarded, the connection is closed before the future has its result."""
    with programs.run("done_callback", guarded=False) as shown:
        assert shown.rows("callback") == 0
        assert shown.left(1) == 1
    with programs.run("done_callback", guarded=True) as shown:
        assert shown.rows("callback") == 1
        assert shown.left(0) == 0


# -- several databases ----------------------------------------------------------------------------


def test_every_database_is_seen_to(programs: Programs) -> None:
    """Connections to all aliases that the work used are closed."""
    for guarded, left in ((False, THREADS), (True, 0)):
        aliases = ("default", "other")
        with programs.run("several_databases", guarded=guarded, aliases=aliases) as shown:
            assert shown.left(left, "default") == left
            assert shown.left(left, "other") == left


def test_a_database_that_is_added_later_is_seen_to(programs: Programs) -> None:
    """As projects do that have a database for each tenant."""
    for guarded, left in ((False, THREADS), (True, 0)):
        with programs.run("database_added_later", guarded=guarded) as shown:
            assert shown.left(left, "late") == left


# -- what is said ---------------------------------------------------------------------------------


def test_a_thread_that_keeps_a_connection_is_told(programs: Programs) -> None:
    """``lifeguard.django.status()`` names live threads with connections that nobody will close."""
    with programs.run("status", guarded=True) as shown:
        assert ["price-importer", "default"] in shown["threads"]
        assert shown["after"] == len(shown["threads"]) - 1


def test_a_thread_that_does_not_use_its_connection_is_told_once(programs: Programs) -> None:
    """A warning names it when somebody else opens a connection, and says what to do. However
    often it has connected, it has one connection."""
    with programs.run("stale", guarded=True) as shown:
        assert shown["threads"] == [["price-importer", "default"]]
        assert shown["about"] == [["price-importer", "default"]]
        (said,) = shown["said"]
        assert said.startswith("thread 'price-importer' has had a connection to database 'default'")
        assert "use lifeguard.ThreadPoolExecutor, `with lifeguard.unit():`" in said


def test_wrappers_of_statements_end_with_their_block(programs: Programs) -> None:
    """``connection.execute_wrapper`` hears of what runs in its block, and of nothing after it,
    also where the connection is opened in the block."""
    for guarded in (False, True):
        with programs.run("wrapper_around_the_first_statement", guarded=guarded) as shown:
            assert shown["heard"] == 2
