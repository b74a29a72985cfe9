"""How a matrix looks: on a terminal, while it fills, and in the documentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.table import Table
from rich.text import Text

from tests.matrix.events import EVENTS
from tests.matrix.judge import Cell

Cells = dict[tuple[str, str], Cell]


def brief(cell: Cell) -> str:
    """The cell in a few words: what became of the worker, of the request, and how soon."""
    if cell.missing is not None:
        return "-"
    if cell.outcome == "failed":
        return "failed"
    words = ["lives on" if cell.outcome == "lives on" else cell.outcome]
    if cell.request:
        words.append(cell.request)
    if cell.outcome == "killed" and cell.gone_after is not None:
        words.append(f"{cell.gone_after:.1f}")
    elif cell.seconds is not None:
        words.append(f"{cell.seconds:.1f}")
    return " ".join(words)


def shown(cell: Cell | None) -> Text:
    if cell is None:
        return Text("·", "dim")
    if cell.missing is not None:
        return Text("-", "dim")
    style = "bold red" if cell.worse else "yellow" if cell.faults else "green"
    text = Text(brief(cell), style)
    if "slow" in cell.faults:
        text.append(f" (bare {cell.bare_seconds:.1f})", style)
    return text


def table(rows: list[str], events: list[str], cells: Cells, title: str) -> Table:
    grid = Table(title=title, title_justify="left", pad_edge=False, show_lines=False)
    grid.add_column("")
    titles = {event.key: event.title for event in EVENTS}
    for event in events:
        grid.add_column(titles[event])
    for row in rows:
        grid.add_row(row, *(shown(cells.get((row, event))) for event in events))
    return grid


def markdown(report: dict[str, Any], why: Callable[[str, str], str]) -> str:
    """The stored report for the documentation: a table, and what is below the goal, and why."""
    titles = {event.key: event.title for event in EVENTS}
    events = [event.key for event in EVENTS if event.key in report["events"]]
    lines = [
        "| server | " + " | ".join(titles[event] for event in events) + " |",
        "|---" * (len(events) + 1) + "|",
    ]
    reasons: dict[str, list[str]] = {}
    for name, row in report["rows"].items():
        texts = []
        for event in events:
            cell = Cell(name, event, **row["cells"].get(event, {"missing": "not run"}))
            text = "" if cell.missing is not None else brief(cell)
            texts.append(f"**{text}**" if cell.faults else text)
            if cell.faults:
                reason = why(name, event) or "no reason is recorded"
                reasons.setdefault(reason, []).append(f"{name} ({titles[event]})")
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    versions = {row["package"]: row["version"] for row in report["rows"].values()}
    lines += [
        "",
        f"Python {report['python']}, "
        + ", ".join(f"{package} {version}" for package, version in versions.items())
        + f"; {report['cores']} cores, {report['seconds'] // 60} minutes.",
        "",
        *(f"* {'; '.join(cells)}: {reason}" for reason, cells in reasons.items()),
    ]
    return "\n".join(lines)
