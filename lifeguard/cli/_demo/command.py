"""What `lifeguard demo` does: play, show, write the page, and decide the exit status."""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
import signal
import sys
import time
from importlib import metadata
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from lifeguard.testing import PostgresError, postgres

from .. import _html, _live
from .._notices import notices, version
from .model import as_json as side_as_json
from .run import ScenarioRun, play_all
from .witness import Witness, witness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from .scenarios import Scenario

FRAMES_PER_SECOND = 8
PROGRESS_EVERY = 2.0


def describe(scenario: Scenario) -> dict[str, Any]:
    """A scenario, for a script."""
    return {
        "name": scenario.name,
        "title": scenario.title,
        "bare": scenario.story,
        "guarded": scenario.remedy,
        "command": scenario.command,
        "difference": scenario.difference,
        "sources": list(scenario.sources),
        "bound": scenario.bound,
    }


def show_list(scenarios: Sequence[Scenario]) -> None:
    Console(highlight=False).print(_live.listing(scenarios))


def about(seen: Witness, seconds: float) -> dict[str, str]:
    """Where these figures come from."""
    packages = ("psycopg", "psycopg-pool", "uvicorn", "gunicorn", "starlette", "Django", "celery")
    return {
        "lifeguard": version(),
        "PostgreSQL": str(seen.version),
        "Python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "machine": f"{platform.system()} {platform.machine()}, {_cpus()} CPUs",
        "played": time.strftime("%Y-%m-%d %H:%M"),
        "took": f"{seconds:.0f} s",
    }


def _cpus() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def result(runs: Sequence[ScenarioRun], where: dict[str, str]) -> dict[str, Any]:
    """Everything that was measured, for a script."""
    return {
        "ok": not broken(runs),
        "about": where,
        "notices": notices(),
        "scenarios": [
            {
                "name": run.scenario.name,
                "seconds": run.seconds,
                **{
                    side: side_as_json(mine, run.verdicts[side]) for side, mine in run.sides.items()
                },
            }
            for run in runs
        ],
    }


def broken(runs: Sequence[ScenarioRun]) -> list[str]:
    """The scenarios in which guarded did not keep its promise: what exit status 1 means."""
    return [run.scenario.name for run in runs if run.verdicts["guarded"].kind == "broken"]


def run(scenarios: Sequence[Scenario], *, seconds: float, as_json: bool, page: Path | None) -> int:
    """Play *scenarios*; the exit status."""
    console = Console(stderr=as_json, highlight=False)
    runs = [ScenarioRun(scenario, seconds * scenario.scale) for scenario in scenarios]
    began = time.monotonic()
    try:
        with postgres(max_connections=100) as server:
            where = asyncio.run(_play(runs, server.dsn, console, began))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print(
            "\n[yellow]Stopped. Servers and database are ended; nothing is left behind.[/]"
        )
        return 130
    except PostgresError as error:
        console.print(Text(f"lifeguard: {error}", style="red"), soft_wrap=True)
        return 2
    console.print(_live.table(runs))
    failing = broken(runs)
    if failing:
        console.print(
            f"[bold red]lifeguard did not keep its promise in: {', '.join(failing)}.[/] "
            "This is a bug: please report it.",
            soft_wrap=True,
        )
        for each in runs:
            if each.scenario.name in failing:
                for fault in each.verdicts["guarded"].faults:
                    console.print(Text(f"  {each.scenario.name}: {fault}", style="red"))
                console.print(Text(each.sides["guarded"].log, style="bright_black"))
    if page is not None:
        _write_page(page, _html.page(runs, where), console, where["took"])
    if as_json:
        json.dump(result(runs, where), sys.stdout, indent=2)
        sys.stdout.write("\n")
    return 1 if failing else 0


def _write_page(page: Path, text: str, console: Console, took: str) -> None:
    """A page that cannot be written takes nothing away from what was measured: the table stays."""
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        console.print(Text(f"No page: {error}. Try --html PATH.", style="yellow"), soft_wrap=True)
        return
    console.print(f"Took {took}. The page with the charts:", end=" ")
    console.print(str(page.resolve()), style="bold cyan", soft_wrap=True)


async def _play(
    runs: Sequence[ScenarioRun], dsn: str, console: Console, began: float
) -> dict[str, str]:
    me = asyncio.current_task()
    assert me is not None
    for number in (signal.SIGTERM, signal.SIGHUP):  # SIGINT is asyncio's own
        asyncio.get_running_loop().add_signal_handler(number, me.cancel)
    async with witness(dsn) as seen:
        if not seen.can_limit:
            console.print(
                "[yellow]This login is no superuser, so neither side gets a limit of connections "
                "of its own: the bare side may fill the server.[/]",
                soft_wrap=True,
            )
        show = _live_picture if console.is_terminal else _plain_lines
        async with show(runs, console):
            await play_all(runs, seen)
        return about(seen, time.monotonic() - began)


@contextlib.asynccontextmanager
async def _live_picture(runs: Sequence[ScenarioRun], console: Console) -> AsyncIterator[None]:
    """Redraw while it plays; when a scenario is over, its line stays."""

    async def draw(live: Live) -> None:
        for number, current in enumerate(runs, 1):
            while current.state != "done":
                live.update(_live.playing(current, number, len(runs), console), refresh=True)
                await asyncio.sleep(1 / FRAMES_PER_SECOND)
            live.console.print(_live.summary_line(current))

    with Live(console=console, auto_refresh=False, transient=True) as live:
        task = asyncio.create_task(draw(live))
        try:
            yield
            await task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@contextlib.asynccontextmanager
async def _plain_lines(runs: Sequence[ScenarioRun], console: Console) -> AsyncIterator[None]:
    """For a log or a pipe: one line now and then, one when a scenario is over."""

    async def report() -> None:
        for current in runs:
            due = 0.0
            while current.state != "done":
                if current.state == "running" and time.monotonic() >= due:
                    console.print(_live.progress_line(current), soft_wrap=True)
                    due = time.monotonic() + PROGRESS_EVERY
                await asyncio.sleep(0.1)
            console.print(_live.summary_line(current), soft_wrap=True)

    task = asyncio.create_task(report())
    try:
        yield
        await task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
