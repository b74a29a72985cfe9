"""What is below the goal in a cell, and what has got worse than was recorded.

The goal: a worker in which any Python code still runs closes what it opened, once, and its units
have finished; PostgreSQL has nothing to complain of; a short request in flight is answered; and
nothing ends more than 0.2 s later than without lifeguard. Where the event itself is a SIGKILL,
the connections of that process are gone within a second.
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.matrix.cell import GONE_WITHIN, Run
from tests.matrix.events import GRACE, SHORT

EXPECTED = Path(__file__).with_name("expected.json")

SLOWER = 0.2
"""Seconds by which a guarded end may be later than a bare one."""

FATES = ("", "200", "503", "500", "unanswered", "dropped", "pending")
"""What can become of a request, the best first."""

FAULTS = {
    "failed": "the cell could not be measured",
    "lives on": "a worker that was to end did not",
    "lost": "a worker ended without closing what it had opened",
    "shut": "a worker ended its connections in order, but the app's own clean-up did not run",
    "twice": "a worker opened or closed more than once",
    "outside": "a process that is no worker opened resources",
    "units": "a unit did not finish before its worker ended",
    "backends": "connections outlived their process by more than a second",
    "postgres": "PostgreSQL's log complains of a lost connection",
    "request": "a short request in flight was not answered",
    "slow": "it ended later than the bare app",
}


@dataclass
class Cell:
    """What was seen of one cell: guarded, and bare for comparison."""

    row: str
    event: str
    missing: str | None = None
    """Why the cell is empty."""
    outcome: str = ""
    request: str = ""
    seconds: float | None = None
    bare_seconds: float | None = None
    backends: tuple[int, int] = (0, 0)
    gone_after: float | None = None
    faults: list[str] = field(default_factory=list)
    worse: list[str] = field(default_factory=list)
    """What is below the recorded expectation, in words."""
    why: str = ""
    """Why it is below the goal, as recorded."""
    story: str = ""

    def as_json(self) -> dict[str, Any]:
        if self.missing is not None:
            return {"missing": self.missing}
        return {
            key: value
            for key, value in vars(self).items()
            if key not in ("row", "event", "story") and value not in ("", [], None)
        }


def outcome(run: Run) -> str:
    """In a word or two: ``closed``, ``killed`` (by the event), or what of ``FAULTS`` it is."""
    if run.error:
        return "failed"
    if run.seconds is None:
        return "lives on"
    if run.lost:
        return "lost" if run.complaints else "shut"
    return "killed" if run.event.kills and run.event.to == "worker" else "closed"


def faults_of(run: Run) -> list[str]:
    """Which of ``FAULTS`` one run shows, without that of being slow."""
    if run.error:
        return ["failed"]
    found = {
        "lives on": run.seconds is None,
        "lost": run.lost and run.complaints,
        "shut": run.lost and not run.complaints,
        "twice": run.twice,
        "outside": run.outside,
        "units": run.units,
        "backends": run.gone_after is None or run.gone_after > GONE_WITHIN,
        "postgres": run.complaints,
        "request": run.event.key == "busy" and run.request != "200",
    }
    return [fault for fault, is_so in found.items() if is_so]


def allowed(guarded: Run, bare: Run) -> float:
    """How many seconds the guarded app may take.

    As long as the bare one, and 0.2 s more. Where the bare app is sooner for having dropped a
    request that the guarded one waits for: as long as that request, or the grace that it is given
    and what the server then gives its threads.
    """
    seconds = bare.seconds if bare.seconds is not None else float("inf")
    if guarded.event.view and _rank(bare.request) > _rank("200"):
        if guarded.event.key == "busy" and guarded.request == "200":
            seconds += SHORT
        if guarded.event.key == "over":
            seconds += GRACE + guarded.row.patience
    return seconds + SLOWER + guarded.event.slack


def is_slow(guarded: list[Run], bare: list[Run]) -> bool:
    """Whether the guarded runs are slower: the quickest of them, and the one in the middle.

    Each beside its like of the bare runs. Some masters look once a second, so that a single bare
    run may be lucky by more than the margin.
    """
    for choose in (quickest, middle):
        mine, theirs = choose(guarded), choose(bare)
        if mine is None or theirs is None or mine.seconds is None or not mine.event.timed:
            return False
        if mine.seconds <= allowed(mine, theirs):
            return False
    return True


def _by_time(runs: list[Run]) -> list[Run]:
    good = [run for run in runs if not run.error]
    return sorted(good, key=lambda run: float("inf") if run.seconds is None else run.seconds)


def quickest(runs: list[Run]) -> Run | None:
    return next(iter(_by_time(runs)), None)


def middle(runs: list[Run]) -> Run | None:
    ordered = _by_time(runs)
    return ordered[len(ordered) // 2] if ordered else None


def cell_of(guarded: list[Run], bare: list[Run]) -> Cell:
    """Judge the runs of one cell. Each of them counts; for the time, the quickest does."""
    first = guarded[0]
    cell = Cell(first.row.name, first.event.key, story=first.story)
    worst = max(guarded, key=lambda run: (len(faults_of(run)), _rank(run.request)))
    cell.outcome, cell.request, cell.story = outcome(worst), worst.request, worst.story
    cell.backends, cell.gone_after = worst.backends, worst.gone_after
    found = {fault for run in guarded for fault in faults_of(run)}
    if is_slow(guarded, bare):
        found.add("slow")
    cell.faults = [fault for fault in FAULTS if fault in found]
    mine, theirs = quickest(guarded), quickest(bare)
    cell.seconds = mine.seconds if mine else None
    cell.bare_seconds = theirs.seconds if theirs else None
    return cell


def _rank(fate: str) -> int:
    return FATES.index(fate) if fate in FATES else FATES.index("500")


# -- the recorded expectation ---------------------------------------------------------------------


def python() -> str:
    return ".".join(platform.python_version_tuple()[:2])


class Expected:
    """What each cell showed when it was recorded, per version of Python, and why.

    ``sometimes`` in a cell, which a person writes, are faults that it shows in some runs only.
    """

    def __init__(self, path: Path = EXPECTED) -> None:
        self.path = path
        self.data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"why": {}}

    def of(self, row: str, event: str) -> dict[str, Any] | None:
        """The record of this cell for this Python, or for the nearest older one, or None."""
        known = [key for key in self.data if key != "why" and _order(key) <= _order(python())]
        if not known:
            return None
        cell: dict[str, Any] | None = self.data[max(known, key=_order)].get(row, {}).get(event)
        return cell

    def why(self, row: str, event: str) -> str:
        why: str = self.data["why"].get(row, {}).get(event, "")
        return why

    def compare(self, cell: Cell) -> None:
        """Note in *cell* what has got worse, and why it is below the goal."""
        cell.why = self.why(cell.row, cell.event) if cell.faults else ""
        known = self.of(cell.row, cell.event)
        if known is None:
            cell.worse = [FAULTS[fault] for fault in cell.faults]
            return
        accepted = {*known.get("faults", ()), *known.get("sometimes", ())}
        cell.worse = [FAULTS[fault] for fault in cell.faults if fault not in accepted]
        before = known.get("request", "")
        if _rank(cell.request) > _rank(before) and "request" not in accepted:
            cell.worse.append(f"the request was {cell.request}, and {before} when recorded")

    def record(self, cells: list[Cell]) -> None:
        """Write down *cells* as what is expected from now on. Reasons and the rest stay."""
        rows = self.data.setdefault(python(), {})
        for cell in cells:
            if cell.missing is not None:
                continue
            before = rows.setdefault(cell.row, {}).get(cell.event, {})
            new: dict[str, Any] = {"outcome": cell.outcome}
            if cell.request:
                new["request"] = cell.request
            if cell.faults:
                new["faults"] = cell.faults
            if "sometimes" in before:
                new["sometimes"] = before["sometimes"]
            rows[cell.row][cell.event] = new
        self.path.write_text(json.dumps(self.data, indent=1) + "\n")


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
