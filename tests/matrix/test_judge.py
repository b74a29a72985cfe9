"""The matrix's own tests: what it takes for a fault, and what for worse than recorded.

A judge that finds nothing is no judge: two cells are run here, guarded and bare, and the bare ones
have to be found guilty.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lifeguard.testing import Postgres, postgres
from tests.matrix import __main__ as command
from tests.matrix import cell
from tests.matrix.cell import SETTINGS, Run
from tests.matrix.events import EVENTS, Event
from tests.matrix.judge import (
    EXPECTED,
    FAULTS,
    Cell,
    Expected,
    cell_of,
    faults_of,
    is_slow,
    outcome,
    python,
)
from tests.matrix.table import brief, markdown
from tests.servers.rows import ENDS, Row

EVENT = {event.key: event for event in EVENTS}
ROW = {row.name: row for row in ENDS}


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A PostgreSQL whose log is a witness."""
    with postgres(settings=SETTINGS) as pg:
        yield pg


def seen(event: str = "term", **kwargs: object) -> Run:
    """A run of uvicorn in which all went well, but for *kwargs*."""
    values: dict[str, object] = {"seconds": 0.3, "ended": 1, "gone_after": 0.0, **kwargs}
    return Run(ROW["uvicorn"], EVENT[event], bare=False, **values)  # type: ignore[arg-type]


# -- real cells -----------------------------------------------------------------------------------


def test_a_guarded_sigterm_is_at_the_goal_and_a_bare_one_is_not(
    server: Postgres, tmp_path: Path
) -> None:
    """uvicorn dies by the signal: what atexit was to close is not, and PostgreSQL says so."""
    guarded = cell.run(ROW["uvicorn"], EVENT["term"], server, tmp_path)
    assert (outcome(guarded), faults_of(guarded)) == ("closed", []), guarded.story
    bare = cell.run(ROW["uvicorn"], EVENT["term"], server, tmp_path, bare=True)
    assert (outcome(bare), faults_of(bare)) == ("lost", ["lost", "postgres"]), bare.story
    for word in ("command", "tests.servers.apps.asgi_app:app", "opened", "unexpected EOF"):
        assert word in bare.story


def test_a_guarded_query_ends_with_its_process_and_a_bare_one_runs_on(
    server: Postgres, tmp_path: Path
) -> None:
    """A SIGKILL in mid-query: without the safety net the backend works on for nobody."""
    guarded = cell.run(ROW["uvicorn"], EVENT["kill-query"], server, tmp_path)
    assert (outcome(guarded), faults_of(guarded)) == ("killed", []), guarded.story
    assert guarded.request == "dropped"
    bare = cell.run(ROW["uvicorn"], EVENT["kill-query"], server, tmp_path, bare=True)
    assert faults_of(bare) == ["backends"], bare.story
    assert bare.backends == (1, 1)


# -- the judge ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "faults", "word"),
    [
        ({}, [], "closed"),
        ({"error": "boom"}, ["failed"], "failed"),
        ({"seconds": None, "ended": 0}, ["lives on"], "lives on"),
        ({"lost": 1, "complaints": ["unexpected EOF"]}, ["lost", "postgres"], "lost"),
        ({"lost": 1}, ["shut"], "shut"),
        ({"twice": 1}, ["twice"], "closed"),
        ({"outside": 1}, ["outside"], "closed"),
        ({"units": 1}, ["units"], "closed"),
        ({"gone_after": 1.1}, ["backends"], "closed"),
        ({"gone_after": None}, ["backends"], "closed"),
        ({"event": "busy", "request": "200"}, [], "closed"),
        ({"event": "busy", "request": "dropped"}, ["request"], "closed"),
        ({"event": "over", "request": "dropped"}, [], "closed"),
        ({"event": "kill-worker", "ended": 0}, [], "killed"),
        ({"event": "kill-master"}, [], "closed"),
    ],
    ids=str,
)
def test_faults(values: dict[str, object], faults: list[str], word: str) -> None:
    run = seen(**values)  # type: ignore[arg-type]
    assert (faults_of(run), outcome(run)) == (faults, word)
    assert set(faults) <= FAULTS.keys()


@pytest.mark.parametrize(
    ("guarded", "bare", "slow"),
    [
        ([{"seconds": 0.5}], [{"seconds": 0.3}], False),
        ([{"seconds": 0.6}], [{"seconds": 0.3}], True),
        ([{"seconds": 0.6}, {"seconds": 0.4}], [{"seconds": 0.3}, {"seconds": 0.9}], False),
        ([{"seconds": 1.4}] * 3, [{"seconds": 1.1}, {"seconds": 1.3}, {"seconds": 1.3}], False),
        ([{"seconds": 1.6}] * 3, [{"seconds": 1.1}, {"seconds": 1.3}, {"seconds": 1.3}], True),
        ([{"seconds": 0.6}], [{"seconds": None}], False),
        ([{"seconds": 0.6}], [], False),
        ([{"error": "boom"}], [{"seconds": 0.1}], False),
    ],
    ids=str,
)
def test_only_what_is_slow_every_time_is_slow(
    guarded: list[dict[str, object]], bare: list[dict[str, object]], slow: bool
) -> None:
    mine = [seen(**values) for values in guarded]  # type: ignore[arg-type]
    theirs = [seen(**values) for values in bare]  # type: ignore[arg-type]
    assert is_slow(mine, theirs) is slow
    assert ("slow" in cell_of(mine, theirs).faults) is slow


def test_who_answers_a_request_may_take_as_long_as_the_request() -> None:
    """The bare app is sooner there because it drops it. That is no measure."""
    bare = seen("busy", request="dropped", seconds=0.0)
    assert not is_slow([seen("busy", request="200", seconds=1.1)], [bare])
    assert is_slow([seen("busy", request="200", seconds=1.3)], [bare])
    assert is_slow([seen("busy", request="dropped", seconds=1.1)], [bare])
    assert is_slow([seen("busy", request="200", seconds=1.3)], [seen("busy", request="200")])


def test_a_fault_of_any_run_counts() -> None:
    """Measuring again is for the time alone: what was lost once is lost."""
    judged = cell_of([seen(), seen(units=1), seen()], [])
    assert judged.faults == ["units"]


# -- what was recorded ----------------------------------------------------------------------------


def expected(tmp_path: Path, **record: object) -> Expected:
    path = tmp_path / "expected.json"
    data = {"why": {"uvicorn": {"term": "because"}}, python(): {"uvicorn": {"term": record}}}
    path.write_text(json.dumps(data))
    return Expected(path)


def compared(known: Expected, **values: object) -> Cell:
    judged = Cell("uvicorn", "term", **values)  # type: ignore[arg-type]
    known.compare(judged)
    return judged


def test_a_fault_is_worse_unless_it_was_recorded(tmp_path: Path) -> None:
    known = expected(tmp_path, faults=["units"], sometimes=["postgres"])
    assert compared(known).worse == []
    assert compared(known, faults=["units", "postgres"]).worse == []
    assert compared(known, faults=["units", "lost"]).worse == [FAULTS["lost"]]
    assert compared(known, faults=["units"]).why == "because"


def test_a_cell_that_was_never_recorded_has_to_be_at_the_goal(tmp_path: Path) -> None:
    known = Expected(tmp_path / "none.json")
    assert compared(known).worse == []
    assert compared(known, faults=["lost"]).worse == [FAULTS["lost"]]


@pytest.mark.parametrize(
    ("before", "now", "worse"),
    [("200", "200", False), ("dropped", "200", False), ("200", "500", True), ("500", "503", False)],
)
def test_a_request_may_fare_better_and_not_worse(
    tmp_path: Path, before: str, now: str, worse: bool
) -> None:
    assert bool(compared(expected(tmp_path, request=before), request=now).worse) is worse


def test_recording_keeps_reasons_and_what_happens_sometimes(tmp_path: Path) -> None:
    known = expected(tmp_path, faults=["lost"], sometimes=["postgres"])
    known.record([Cell("uvicorn", "term", outcome="closed", faults=["units"])])
    data = json.loads(known.path.read_text())
    assert data["why"] == {"uvicorn": {"term": "because"}}
    assert data[python()]["uvicorn"]["term"] == {
        "outcome": "closed",
        "faults": ["units"],
        "sometimes": ["postgres"],
    }


def test_every_cell_below_the_goal_has_a_reason_and_no_other_has() -> None:
    """Whoever records a fault says why it is there."""
    data = json.loads(EXPECTED.read_text())
    below = {
        (row, event)
        for version, rows in data.items()
        if version != "why"
        for row, cells in rows.items()
        for event, known in cells.items()
        if known.get("faults") or known.get("sometimes")
    }
    reasons = {(row, event) for row, events in data["why"].items() for event in events}
    assert below == reasons
    assert all(why for events in data["why"].values() for why in events.values())


@pytest.mark.parametrize("row", ENDS, ids=lambda row: row.name)
def test_every_cell_is_recorded_or_empty_for_a_reason(row: Row) -> None:
    data = json.loads(EXPECTED.read_text())
    for version in sorted(data.keys() - {"why"}):
        recorded = set(data[version].get(row.name, {}))
        assert recorded == {event.key for event in EVENTS if event.missing(row) is None}, version


# -- the command ----------------------------------------------------------------------------------


def invoke(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(command.app, args)
    return result.exit_code, result.output


def test_help_teaches() -> None:
    status, said = invoke("--help")
    assert status == 0
    for word in ("--events", "--bare", "--jobs", "--json", "--record", "'gunicorn*' -e term,int"):
        assert word in said


def test_list_shows_how_each_server_is_started() -> None:
    status, said = invoke("--list", "uwsgi", "gunicorn*preload")
    assert status == 0
    assert "uwsgi: python -c import pyuwsgi; pyuwsgi.run()" in said
    assert "gunicorn gthread --preload: python -m gunicorn" in said
    assert "uvicorn:" not in said


@pytest.mark.parametrize("args", [["nginx"], ["-e", "term,earthquake"]])
def test_what_is_not_there_is_said_with_what_is(args: list[str]) -> None:
    status, said = invoke(*args)
    assert status == 2
    assert args[-1].split(",")[-1] in said
    assert ("uvicorn" if args[0] == "nginx" else "kill-master") in " ".join(said.split())


@pytest.mark.parametrize(("lost", "status"), [(0, 0), (1, 1)])
def test_a_worse_cell_fails_with_its_story(
    lost: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit status is for CI; the story is for whoever reads its log."""

    def run(row: Row, event: Event, *args: object, bare: bool = False) -> Run:
        complaints = ["unexpected EOF"] if lost else []
        return seen(lost=lost, complaints=complaints, story="what the server said")

    monkeypatch.setattr(command, "run", run)
    path = tmp_path / "report.json"
    got, said = invoke("uvicorn", "-e", "term,hup", "--report", str(path))
    assert got == status
    assert ("what the server said" in said) is bool(lost)
    report = json.loads(path.read_text())
    cells = report["rows"]["uvicorn"]["cells"]
    assert cells["term"]["outcome"] == ("lost" if lost else "closed")
    assert cells["hup"] == {"missing": "one process: there is no master, and no reload"}
    assert "| uvicorn | " in markdown(report, Expected().why)


def test_brief() -> None:
    judged = cell_of([seen("over", request="500")], [])
    assert brief(judged) == "closed 500 0.3"
    assert brief(cell_of([seen("kill-worker", gone_after=0.04)], [])) == "killed 0.0"
    assert brief(Cell("uvicorn", "hup", missing="no reload")) == "-"
