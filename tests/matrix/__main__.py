"""``python -m tests.matrix``: run it, print it, store it, and fail where it has got worse."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from lifeguard.testing import Postgres, postgres
from tests.matrix.cell import SETTINGS, Run, run
from tests.matrix.events import EVENTS, Event
from tests.matrix.judge import FAULTS, SLOWER, Cell, Expected, cell_of, is_slow, python
from tests.matrix.table import Cells, brief, markdown, table
from tests.servers.harness import GRACEFUL
from tests.servers.rows import ENDS, Row

AGAIN = 12
"""How often what was slow is measured anew: each time there is less of it, and so less noise."""

EPILOG = """
Examples:

  python -m tests.matrix                          all of it: minutes

  python -m tests.matrix 'gunicorn*' -e term,int  some servers, two events

  python -m tests.matrix uvicorn --bare           one server, without lifeguard

  python -m tests.matrix --record                 what is seen is expected from now on
"""

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog=EPILOG)
def main(
    rows: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SERVER]...", help="Only these: a name, its beginning, or a pattern with *."
        ),
    ] = None,
    events: Annotated[
        str,
        typer.Option(
            "--events",
            "-e",
            metavar="EVENTS",
            help="Only these, with commas: " + ", ".join(event.key for event in EVENTS) + ".",
        ),
    ] = "*",
    bare: Annotated[
        bool, typer.Option("--bare", help="See the apps without lifeguard. Nothing is judged.")
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Cells at a time.")] = (
        os.cpu_count() or 1
    )
    + 1,
    record: Annotated[
        bool, typer.Option("--record", help="Write what is seen into expected.json.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report, as it is stored, to stdout.")
    ] = False,
    show_markdown: Annotated[
        bool, typer.Option("--markdown", help="Run nothing: print the stored report as a table.")
    ] = False,
    show_list: Annotated[
        bool, typer.Option("--list", help="Run nothing: list what there is.")
    ] = False,
    path: Annotated[
        Path, typer.Option("--report", metavar="PATH", help="Where the report is stored.")
    ] = Path(".lifeguard/matrix.json"),
) -> None:
    """End the workers of real servers in every way there is, and see what is left behind.

    Each cell starts a server of its own, with a pool on a real PostgreSQL, and ends it; the same
    without lifeguard, to compare how long that takes. The witnesses are an append-only log,
    pg_stat_activity and PostgreSQL's own log.

    A cell reads: what became of the worker (closed: each resource once; killed: by the event;
    lost: ended without closing; lives on), the fate of the request in flight, and the seconds
    until it had ended; for killed, until its connections had. Yellow is below the goal, for
    a reason that is recorded; red is worse than recorded, and the exit status is 1.
    """
    console = Console(stderr=as_json or show_markdown)
    if not console.is_terminal:
        console.width = 200  # a log has no width, and a table of twelve columns needs one
    if show_markdown:
        if not path.exists():
            raise typer.BadParameter(f"there is no report at {path} yet: run the matrix first")
        print(markdown(json.loads(path.read_text()), Expected().why))
        return
    chosen = _choose(ENDS, [row.name for row in ENDS], rows or ["*"], "SERVER")
    columns = _choose(EVENTS, [event.key for event in EVENTS], events.split(","), "--events")
    if show_list:
        for row in chosen:
            console.print(
                f"{row.name}: python {' '.join(row.command(0, graceful=5))}", soft_wrap=True
            )
        for event in columns:
            console.print(f"{event.key}: {event.title}")
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)  # servers would inherit an ignored one
    matrix = Matrix(chosen, columns, bare=bare, console=console)
    began = time.monotonic()
    with (
        postgres(max_connections=400, settings=SETTINGS) as pg,
        tempfile.TemporaryDirectory() as folder,
    ):
        matrix.fill(pg, Path(folder), jobs)
    matrix.show(time.monotonic() - began)
    report = matrix.report(time.monotonic() - began)
    if not bare:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")
        console.print(f"stored in {path}", highlight=False)
    if as_json:
        print(json.dumps(report, indent=1))
    if record and not bare:
        matrix.expected.record(list(matrix.cells.values()))
        console.print(f"recorded in {matrix.expected.path.name} for Python {python()}")
    elif any(cell.worse for cell in matrix.cells.values()) and not bare:
        raise typer.Exit(1)


def _choose(things: Any, names: list[str], patterns: list[str], option: str) -> list[Any]:
    found = []
    for pattern in patterns:
        exact = [name for name in names if name == pattern]
        here = exact or [name for name in names if fnmatch(name, pattern)]
        here = here or [name for name in names if name.startswith(pattern)]
        if not here:
            raise typer.BadParameter(
                f"{pattern!r} is none of {', '.join(names)}", param_hint=option
            )
        found += here
    return [thing for thing, name in zip(things, names, strict=True) if name in found]


class Matrix:
    """The cells that were asked for, filled a few at a time."""

    def __init__(
        self, rows: list[Row], events: list[Event], *, bare: bool, console: Console
    ) -> None:
        self.rows, self.events, self.bare, self.console = rows, events, bare, console
        self.cells: Cells = {}
        self.runs: dict[tuple[str, str], tuple[list[Run], list[Run]]] = {}
        self.expected = Expected()

    def fill(self, pg: Postgres, folder: Path, jobs: int) -> None:
        todo: list[tuple[Row, Event]] = []
        for row in self.rows:
            for event in self.events:
                missing = event.missing(row)
                if missing is None:
                    todo.append((row, event))
                else:
                    self._set(Cell(row.name, event.key, missing=missing))
        live = Live(get_renderable=self._table, console=self.console, refresh_per_second=2)
        watch = self.console.is_terminal
        with live if watch else _Nothing():
            with ThreadPoolExecutor(jobs) as pool:
                futures = [
                    pool.submit(self._measure, row, event, pg, folder) for row, event in todo
                ]
                try:
                    for done, future in enumerate(as_completed(futures), 1):
                        cell = future.result()
                        if not watch:
                            self._say(cell, f"[{done}/{len(todo)}]")
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
            for _ in range(AGAIN):
                slow = [cell for cell in todo if is_slow(*self.runs[cell[0].name, cell[1].key])]
                if not slow:
                    break
                self._hint(f"measured again, for they were slow: {len(slow)} cells")
                with ThreadPoolExecutor(max(1, jobs // 2)) as pool:
                    list(pool.map(lambda cell: self._measure_again(*cell, pg, folder), slow))

    def _measure(self, row: Row, event: Event, pg: Postgres, folder: Path) -> Cell:
        guarded, bare = [run(row, event, pg, folder, bare=self.bare)], []
        if event.timed and not self.bare:
            bare.append(run(row, event, pg, folder, bare=True))
        self.runs[row.name, event.key] = guarded, bare
        return self._set(cell_of(guarded, bare))

    def _measure_again(self, row: Row, event: Event, pg: Postgres, folder: Path) -> None:
        guarded, bare = self.runs[row.name, event.key]
        guarded.append(run(row, event, pg, folder))
        bare.append(run(row, event, pg, folder, bare=True))
        self._set(cell_of(guarded, bare))

    def _set(self, cell: Cell) -> Cell:
        if cell.missing is None and not self.bare:
            self.expected.compare(cell)
        self.cells[cell.row, cell.event] = cell
        return cell

    # -- what is printed -----------------------------------------------------------------------

    def _table(self) -> Any:
        title = f"Python {platform.python_version()}{', without lifeguard' if self.bare else ''}"
        return table(
            [row.name for row in self.rows],
            [event.key for event in self.events],
            self.cells,
            f"{title}: {sum(c.missing is None for c in self.cells.values())} cells",
        )

    def _say(self, cell: Cell, where: str) -> None:
        faults = f"  ({', '.join(cell.faults)})" if cell.faults and not self.bare else ""
        mark = "  WORSE" if cell.worse else ""
        bare = f", bare {cell.bare_seconds:.2f}" if cell.bare_seconds is not None else ""
        self.console.print(
            f"{where:>9} {cell.row:32} {cell.event:12} {brief(cell)}{bare}{faults}{mark}",
            highlight=False,
            soft_wrap=True,
        )

    def _hint(self, text: str) -> None:
        self.console.print(text, style="dim", highlight=False)

    def show(self, seconds: float) -> None:
        """The table, and the story of each cell that has got worse."""
        cells = [cell for cell in self.cells.values() if cell.missing is None]
        worse = [cell for cell in cells if cell.worse]
        for cell in worse:
            self.console.rule(f"{cell.row}: {cell.event}", style="red")
            self.console.print("; ".join(cell.worse), style="red", highlight=False)
            self.console.print(cell.story, markup=False, highlight=False, soft_wrap=True)
        if worse or not self.console.is_terminal:  # else it is there already
            self.console.print(self._table())
        if self.bare:
            return
        below = [cell for cell in cells if cell.faults and not cell.worse]
        for cell in below:
            why = cell.why or "no reason is recorded"
            self.console.print(
                f"below the goal: {cell.row}, {cell.event} ({', '.join(cell.faults)}): {why}",
                highlight=False,
                soft_wrap=True,
            )
        self.console.print(
            f"{len(cells)} cells in {seconds:.0f} s: {len(cells) - len(below) - len(worse)} at the "
            f"goal, {len(below)} below it as recorded, {len(worse)} worse than recorded",
            highlight=False,
        )

    def report(self, seconds: float) -> dict[str, Any]:
        """What is stored."""
        return {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "seconds": round(seconds),
            "bare": self.bare,
            "slower": SLOWER,
            "faults": FAULTS,
            "events": {event.key: event.title for event in self.events},
            "rows": {
                row.name: {
                    "package": row.package,
                    "version": row.version,
                    "command": "python " + " ".join(row.command(8000, graceful=GRACEFUL)),
                    "cells": {
                        event.key: self.cells[row.name, event.key].as_json()
                        for event in self.events
                    },
                }
                for row in self.rows
            },
        }


class _Nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *args: object) -> None: ...


if __name__ == "__main__":
    sys.exit(app())
