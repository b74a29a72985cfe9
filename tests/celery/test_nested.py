"""Tasks that run in the thread of their caller: eager, inline, nested, traced. No row is lost.

A clean-up at the end of a task is right in a worker, and wrong in a caller who is in the middle of
a transaction: it closes the caller's connection. Where that is the last thing in an ``atomic()``
block, Django raises nothing, and nothing is committed. Each test looks for the rows with another
connection. The program (nested/) has no worker but, for "trace", one in its own process.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lifeguard.testing import Postgres

pytestmark = pytest.mark.timeout(240)

ROOT = Path(__file__).resolve().parents[2]

DJANGO = [
    "in_atomic",
    "last_in_atomic",
    "in_savepoint",
    "in_autocommit",
    "without_autocommit",
    "on_commit",
    "in_test_case",
]
UNITS = [
    "in_unit",
    "in_unit_and_autocommit",
    "in_request",
    "in_request_and_autocommit",
]
PSYCOPG = [
    "with_a_psycopg_connection",
    "with_a_connection_of_a_pool",
    "with_a_connection_held_by_hand",
]

BETWEEN_TRANSACTIONS = [
    "in_autocommit",
    "on_commit",
    "in_unit_and_autocommit",
    "in_request_and_autocommit",
]
EVERY = DJANGO + UNITS + PSYCOPG
ARRANGEMENTS = ["lifeguard.task", "lifeguard.celery.task", "install"]
WAYS = ["delay", "apply", "inline", "failing", "failing inline", "nested"]
CALLS = [
    *itertools.product(["lifeguard.task", "install"], WAYS),
    ("lifeguard.celery.task", "delay"),  # which for a plain function is lifeguard.task
    ("lifeguard.celery.task", "nested"),
]

CLOSED = "OperationalError: the connection is closed"


class Callers:
    """Asks the program for what each caller had. One child of it for each question."""

    def __init__(self, pg: Postgres, folder: Path) -> None:
        self.pg = pg
        self.folder = folder
        self.numbers = itertools.count(1)
        self.output = folder / "program.txt"
        with self.output.open("wb") as errors:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "tests.celery.nested.program"],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "PYTHONUNBUFFERED": "1",
                    "NESTED_DSN": pg.dsn,
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def ask(
        self, arrangement: str, way: str, callers: list[str], *, django: bool
    ) -> dict[str, dict[str, Any]]:
        """What each of *callers* had and raised, and which of its rows are "there"."""
        number = next(self.numbers)
        name = f"nested.{os.getpid()}.{number}."
        answer = self.folder / f"{number}.json"
        request = {
            "arrangement": arrangement,
            "way": way,
            "callers": callers,
            "django": django,
            "name": name,
            "answer": str(answer),
        }
        assert self.popen.stdin is not None and self.popen.stdout is not None
        self.popen.stdin.write(json.dumps(request) + "\n")
        self.popen.stdin.flush()
        status = self.popen.stdout.readline().strip()
        said = self.output.read_text()
        assert status == "0", f"{arrangement}, {way}: it ended with {status!r}\n{said}"
        answers: dict[str, dict[str, Any]] = json.loads(answer.read_text())
        assert "failed" not in answers, answers["failed"]
        with self.pg.connect() as conn:
            found = {value for (value,) in conn.execute("SELECT value FROM lifeguard_nested")}
        for caller in answers.values():
            caller["there"] = [row for row in caller["rows"] if row in found]
        assert self.pg.wait_count(0, prefix=name) == 0
        return answers

    def close(self) -> None:
        assert self.popen.stdin is not None and self.popen.stdout is not None
        self.popen.stdin.close()
        try:
            assert self.popen.wait(60) == 0, self.output.read_text()
        finally:
            self.popen.kill()
            self.popen.wait()
            self.popen.stdout.close()


@pytest.fixture(scope="module")
def callers(pg: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callers]:
    with pg.connect() as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS lifeguard_nested (value text)")
    callers = Callers(pg, tmp_path_factory.mktemp("nested"))
    try:
        yield callers
    finally:
        callers.close()
        with pg.connect() as conn:
            conn.execute("DROP TABLE lifeguard_nested")


# -- what goes wrong bare -------------------------------------------------------------------------


@pytest.mark.parametrize("cleanup", ["close_all", "close_old_connections"])
@pytest.mark.parametrize("way", ["delay", "inline", "failing"])
def test_a_cleanup_at_the_end_of_a_task_loses_rows_of_its_caller(
    callers: Callers, cleanup: str, way: str
) -> None:
    """``connections.close_all()`` and Django's own ``close_old_connections()``: more SQL in the
    caller's block fails, and without more SQL its rows are lost in silence."""
    bare = callers.ask(cleanup, way, DJANGO, django=False)
    assert bare["in_atomic"]["raised"] == CLOSED
    assert bare["in_savepoint"]["raised"] == CLOSED
    assert CLOSED in bare["in_test_case"]["raised"]
    for name in ("in_atomic", "in_savepoint", "last_in_atomic"):
        assert bare[name]["rows"] and bare[name]["there"] == []
    _, _, second = bare["without_autocommit"]["rows"]
    assert bare["without_autocommit"]["there"] == [second]
    for name in ("last_in_atomic", "without_autocommit"):
        assert bare[name]["raised"] is None  # and nobody is told
    before, after = bare["in_autocommit"]["backends"]
    assert before != after  # no harm, but the caller's connection is another one


def test_a_worker_in_the_callers_process_loses_rows_of_a_traced_call(callers: Callers) -> None:
    """Celery's fixup for Django closes the connections of the thread before and after each task,
    unless it is eager. A task that is traced in the caller's own thread is not: the same loss."""
    bare = callers.ask("celery", "trace", DJANGO, django=False)
    assert bare["in_atomic"]["raised"] is not None
    assert bare["in_atomic"]["there"] == []
    assert bare["last_in_atomic"]["there"] == []
    assert bare["in_test_case"]["raised"] is not None


@pytest.mark.parametrize("way", ["delay", "inline", "failing"])
def test_celery_alone_leaves_its_caller_alone(callers: Callers, way: str) -> None:
    """So must a task that is guarded: Celery's fixup does nothing to eager tasks."""
    for answer in callers.ask("celery", way, DJANGO, django=False).values():
        unharmed(answer)


# -- guarded --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arrangement", "way"), CALLS)
def test_the_caller_keeps_its_connection_and_its_rows(
    callers: Callers, arrangement: str, way: str
) -> None:
    """In whatever transaction or unit the caller is: the same connection before and after the
    call, and every row is there for others to read."""
    answers = callers.ask(arrangement, way, EVERY, django=True)
    assert list(answers) == EVERY
    for answer in answers.values():
        unharmed(answer)


@pytest.mark.parametrize("arrangement", ["lifeguard.task", "install"])
def test_the_caller_of_a_traced_task_keeps_its_transaction_and_its_rows(
    callers: Callers, arrangement: str
) -> None:
    """With a worker in the same process: every row is there. Between transactions Django's rules
    hold, as they do between two tasks of a worker: CONN_MAX_AGE=0 closes a connection that is in
    the middle of nothing."""
    for name, answer in callers.ask(arrangement, "trace", EVERY, django=True).items():
        if name not in BETWEEN_TRANSACTIONS:
            unharmed(answer)
        assert answer["raised"] is None, answer
        assert answer["there"] == answer["rows"], answer


@pytest.mark.parametrize("way", ["delay", "inline", "failing", "nested"])
def test_the_caller_of_an_async_task_keeps_its_connection_and_its_rows(
    callers: Callers, way: str
) -> None:
    """An ``async def`` runs on the loop thread, with a connection of its own, while its caller
    waits in the middle of a transaction."""
    for answer in callers.ask("async def", way, EVERY, django=True).values():
        unharmed(answer)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_without_lifeguard_django_the_caller_is_left_alone_as_well(
    callers: Callers, arrangement: str
) -> None:
    for answer in callers.ask(arrangement, "delay", DJANGO + PSYCOPG, django=False).values():
        unharmed(answer)


def unharmed(answer: dict[str, Any]) -> None:
    assert answer["raised"] is None, answer
    assert len(set(answer["backends"])) == 1, answer
    assert answer["there"] == answer["rows"], answer
