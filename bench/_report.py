"""Rows, targets and verdicts: what a group found, as a table and as JSON."""

from __future__ import annotations

import datetime as dt
import math
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench._measure import Sample

__all__ = ["Group", "Row", "Target", "as_json", "print_group", "print_verdicts", "verdict"]

PACKAGES = (
    "lifeguard-pool",
    "svcs",
    "dishka",
    "werkzeug",
    "starlette",
    "psycopg",
    "psycopg-binary",
    "psycopg-pool",
    "anyio",
    "asgiref",
    "celery",
    "django",
    "uvicorn",
    "gunicorn",
)


@dataclass(frozen=True)
class Row:
    """One variant's figures: ``added`` is its minimum less the bare one's, if there is one."""

    name: str
    minimum: float
    median: float
    added: float | None = None
    ratio: float | None = None
    more: dict[str, float] = field(default_factory=dict)
    """Other figures of the same run, each with its unit in its name."""


@dataclass(frozen=True)
class Target:
    """A figure that must stay at or under a limit; ``of`` says in words what is divided by what."""

    name: str
    of: str
    measured: float
    limit: float
    unit: str = "x"

    @property
    def met(self) -> bool:
        # NaN, a measurement that went wrong, compares false and so is not met.
        return self.measured <= self.limit


@dataclass
class Group:
    """Everything one group measured. ``yardstick`` names the row that is 1 in the ratio column."""

    name: str
    title: str
    unit: str
    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    yardstick: str = ""

    def add(
        self, samples: dict[str, Sample], *, bare: str | None = None, yardstick: str | None = None
    ) -> None:
        """Turn samples into rows, compared with ``bare`` and with what ``yardstick`` adds to it."""
        self.yardstick = self.yardstick or yardstick or ""
        floor = samples[bare].minimum if bare else 0.0
        one = samples[yardstick].minimum - floor if yardstick else None
        for name, sample in samples.items():
            added = sample.minimum - floor
            self.rows.append(
                Row(
                    name,
                    sample.minimum,
                    sample.median,
                    None if bare in (None, name) else added,
                    None if one is None or name == bare else divide(added, one),
                )
            )

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def target(self, name: str, of: str, measured: float, limit: float, unit: str = "x") -> None:
        self.targets.append(Target(name, of, measured, limit, unit))

    def added(self, name: str) -> float:
        """What ``name`` adds over bare; NaN where there is no bare."""
        added = self.row(name).added
        return float("nan") if added is None else added

    def added_ratio(self, name: str, to: str) -> float:
        """What ``name`` adds over bare, divided by what ``to`` adds."""
        return divide(self.added(name), self.added(to))


def divide(value: float, by: float) -> float:
    """``value / by``, or NaN where the divisor is noise, which must not pass for a result."""
    return value / by if by > 0 else float("nan")


def verdict(groups: Iterable[Group]) -> bool:
    """True if every target of every group is met (and there is at least one)."""
    targets = [target for group in groups for target in group.targets]
    return bool(targets) and all(target.met for target in targets)


def as_json(groups: Iterable[Group], settings: dict[str, Any]) -> dict[str, Any]:
    """The whole run as plain data: where, when, with what, and all the figures."""
    return {
        "schema": 1,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "load": [round(value, 2) for value in os.getloadavg()],
        },
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": dict(installed()),
        "settings": settings,
        "groups": {
            group.name: {
                "title": group.title,
                "unit": group.unit,
                "yardstick": group.yardstick or None,
                "rows": [as_data(row) for row in group.rows],
                "targets": [
                    {**vars(target), "measured": known(target.measured), "met": target.met}
                    for target in group.targets
                ],
                "notes": group.notes,
            }
            for group in groups
        },
    }


def as_data(row: Row) -> dict[str, Any]:
    more = {name: known(value) for name, value in row.more.items()}
    return {**vars(row), "ratio": known(row.ratio), "more": more}


def known(value: float | None) -> float | None:
    """JSON has no NaN."""
    return None if value is None or math.isnan(value) else value


def installed() -> Iterable[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def cpu_model() -> str:
    """The CPU's name, which the standard library gives on no platform."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return platform.processor() or platform.machine()


def figure(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "us" and abs(value) < 100:
        return f"{value:.1f}"
    return f"{value:,.2f}" if unit in ("ms", "x") else f"{value:,.0f}"


def print_group(console: Console, group: Group) -> None:
    table = Table(title=group.title, title_justify="left", title_style="bold")
    table.add_column("variant")
    added = any(row.added is not None for row in group.rows)
    for column in (f"min {group.unit}", f"median {group.unit}", f"added {group.unit}")[: 2 + added]:
        table.add_column(column, justify="right")
    if group.yardstick:
        table.add_column(f"/ {group.yardstick}", justify="right")
    more = list(dict.fromkeys(name for row in group.rows for name in row.more))
    for name in more:
        table.add_column(name, justify="right")
    for row in group.rows:
        values = (row.minimum, row.median, row.added)[: 2 + added]
        cells = [figure(value, group.unit) for value in values]
        if group.yardstick:
            cells.append(figure(row.ratio, "x"))
        cells += [figure(row.more.get(name), name.rpartition(" ")[2]) for name in more]
        table.add_row(row.name, *cells)
    console.print(table)
    for note in group.notes:
        console.print(f"  {note}", style="dim", highlight=False)


def print_verdicts(console: Console, groups: Iterable[Group]) -> None:
    table = Table(title="Targets", title_justify="left", title_style="bold")
    table.add_column("group")
    table.add_column("target")
    table.add_column("measured", justify="right")
    table.add_column("limit", justify="right")
    table.add_column("")
    for group in groups:
        for target in group.targets:
            table.add_row(
                group.name,
                f"{target.name}: {target.of}",
                f"{figure(target.measured, target.unit)} {target.unit}",
                f"<= {figure(target.limit, target.unit)} {target.unit}",
                "[green]met[/]" if target.met else "[bold red]not met[/]",
            )
    console.print(table)
