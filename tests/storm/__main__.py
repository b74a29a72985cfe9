"""``python -m tests.storm``: let it storm, print what was seen, exit 1 if a promise was broken."""

from __future__ import annotations

import json
import platform
import random
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lifeguard.testing import Postgres, postgres
from tests.storm.judge import Verdict, complaints, judge
from tests.storm.storm import MAX_SIZE, TARGETS, WORKERS, Blow, Sampler

SETTINGS = {"log_line_prefix": "%m [%p] %a "}
"""Of PostgreSQL: the name of the application, and so the process, in each line of its log."""
SHOWN = 12
"""Violations shown per server. All of them are in the report."""


def storm(
    pg: Postgres,
    *,
    ends: int,
    seed: int,
    limit: float,
    bare: bool = False,
    console: Console | None = None,
) -> list[Verdict]:
    """Let it storm until *ends* workers have ended, for at most *limit* seconds."""
    console = console or Console(stderr=True)
    targets = list(TARGETS)
    total = sum(target.share for target in targets)
    shares = [-(-ends * target.share // total) for target in targets]
    log = pg.log_path
    begin = log.stat().st_size if log is not None else 0
    with tempfile.TemporaryDirectory(prefix="storm-") as folder:
        blows = []
        for target, share in zip(targets, shares, strict=True):
            own = Path(folder, target.name)
            own.mkdir()
            blows.append(Blow(target, own, pg, seed=seed, ends=share, bare=bare))
        sampler = Sampler(pg, blows)
        sampler.start()
        try:
            for blow in blows:
                blow.start()
            _wait(blows, limit, console)
        finally:
            for blow in blows:
                blow.over.set()
            for blow in blows:
                blow.stop()
            sampler.stop()
        verdicts = []
        text = ""
        if log is not None:
            with log.open("rb") as file:
                file.seek(begin)
                text = file.read().decode(errors="replace")
        for blow in blows:
            record = blow.record
            if record.ends < blow.wanted:
                record.trouble.append(f"only {record.ends} workers ended within {limit:g} s")
            record.complaints = complaints(text, blow.prefix, record.killed)
            verdict = judge(record, blow.server.events.read(), bare=bare)
            if verdict.violations and not bare:
                verdict.log = blow.server.tail(2000)
            verdicts.append(verdict)
    return verdicts


def _wait(blows: list[Blow], limit: float, console: Console) -> None:
    deadline = time.monotonic() + limit
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        tasks = {
            blow.target.name: progress.add_task(blow.target.name, total=blow.wanted)
            for blow in blows
        }
        while time.monotonic() < deadline and not all(blow.enough for blow in blows):
            time.sleep(0.1)
            for blow in blows:
                blow.serving()  # notes who has ended
                progress.update(
                    tasks[blow.target.name], completed=min(blow.record.ends, blow.wanted)
                )
                if blow.enough:
                    blow.over.set()


def show(verdicts: list[Verdict], console: Console, title: str) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("server")
    for column in (
        "ended workers",
        "answered",
        "left",
        "held by killed",
        "unread, asked again",
        "connections",
        "outlived by",
        "violations",
    ):
        table.add_column(column, justify="right")
    for v in verdicts:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(v.kinds.items()))
        table.add_row(
            v.name,
            f"{v.ends} ({kinds})",
            str(v.answered),
            str(v.left),
            str(v.held),
            str(v.unread),
            f"{v.peak} of {v.living} x {MAX_SIZE}",
            f"{v.ghost:.2f} s",
            f"[red]{len(v.violations)}" if v.violations else "[green]0",
        )
    console.print(table)
    for v in verdicts:
        for line in v.violations[:SHOWN]:
            console.print(f"  {v.name}: {line}", highlight=False, markup=False, soft_wrap=True)
        if len(v.violations) > SHOWN:
            console.print(f"  {v.name}: and {len(v.violations) - SHOWN} more")


def main(
    ends: Annotated[int, typer.Option(min=3, help="Worker ends, over all servers.")] = 200,
    seed: Annotated[
        int | None, typer.Option(help="Of the dice. Without one they are rolled, and it is shown.")
    ] = None,
    limit: Annotated[float, typer.Option(help="Seconds it may take at most.")] = 360.0,
    bare_ends: Annotated[
        int,
        typer.Option(
            min=0,
            help="Worker ends of the same storm without lifeguard, where something must break. "
            "0: without that.",
        ),
    ] = 30,
    json_path: Annotated[
        Path, typer.Option("--json", metavar="PATH", help="Where to store what was seen.")
    ] = Path(".lifeguard/storm.json"),
) -> None:
    """End workers at random moments, under load, in every way there is, on three servers.

    Connections must stay in number, pools must close once in every process that was not killed,
    no request may fail but those that a killed process held, and nothing may be left. Exits 1 if
    that does not hold; or if it holds without lifeguard, for then this has shown nothing.
    """
    # Its servers are in sessions of their own: whoever ends this ends them through `finally`.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console()
    if not console.is_terminal:
        console.width = 140
    seed = random.randrange(1_000_000) if seed is None else seed
    console.print(
        f"{ends} ends of workers, {len(TARGETS)} servers of {WORKERS} workers, seed {seed}"
    )
    began = time.monotonic()
    report: dict[str, Any] = {
        "seed": seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    with postgres(settings=SETTINGS) as pg:
        if not pg.embedded:
            console.print("LIFEGUARD_DSN names a server: what PostgreSQL logs is not looked at")
        guarded = storm(pg, ends=ends, seed=seed, limit=limit)
        report["seconds"] = round(time.monotonic() - began, 1)
        report["servers"] = {verdict.name: asdict(verdict) for verdict in guarded}
        show(guarded, console, f"With lifeguard, in {report['seconds']} s")
        good = not any(verdict.violations for verdict in guarded)
        if bare_ends:
            bare = storm(pg, ends=bare_ends, seed=seed, limit=limit, bare=True)
            report["bare"] = {verdict.name: asdict(verdict) for verdict in bare}
            show(bare, console, "Without: pools closed by atexit")
            broken = any(verdict.violations for verdict in bare)
            if not broken:
                console.print("Nothing broke without lifeguard, so this storm has shown nothing.")
            good = good and broken
    report["good"] = good
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"Written to {json_path}. The same dice: --seed {seed}")
    raise typer.Exit(0 if good else 1)


if __name__ == "__main__":
    typer.run(main)
