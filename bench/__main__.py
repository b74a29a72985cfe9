"""``python -m bench``: measure, print, store, and with ``--check`` fail if a target is missed."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench._measure import Plan
from bench._report import Group, as_json, print_group, print_verdicts, verdict

# In this order, and imported one at a time: what a later group loads is not there yet.
GROUPS = {
    "import": "bench.imports",
    "memory": "bench.memory",
    "task": "bench.task",
    "wsgi": "bench.wsgi",
    "asgi": "bench.asgi",
    "pool": "bench.pool",
    "celery": "bench.celery",
    "django": "bench.django",
}


def main(
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GROUP", help=f"Measure this group ({', '.join(GROUPS)}); repeatable."
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Interleaved rounds; the minimum over them is compared.")
    ] = 200,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="A tenth of the rounds: to see that it runs, not to quote."),
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 if a target is not met.")] = False,
    json_path: Annotated[
        Path, typer.Option("--json", metavar="PATH", help="Where to store every figure.")
    ] = Path(".lifeguard/bench.json"),
) -> None:
    """Ratios of what lifeguard adds to what other constructs add, measured side by side."""
    unknown = set(only or ()) - GROUPS.keys()
    if unknown:
        raise typer.BadParameter(
            f"no group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}",
            param_hint="--only",
        )
    plan = Plan(rounds=max(1, rounds // 10) if quick else rounds, quick=quick)
    # In a file or a pipe there is no edge to keep to, and a table that is folded says nothing.
    console = Console(width=None if sys.stdout.isatty() else 110)
    progress = Console(stderr=True)
    groups: list[Group] = []
    for name, module in GROUPS.items():
        if only and name not in only:
            continue
        # No spinner: it would be a thread, and its own noise, in a process that forks to measure.
        progress.print(f"measuring {name} ...", style="dim")
        group: Group = importlib.import_module(module).measure(plan)
        groups.append(group)
        print_group(console, group)
    print_verdicts(console, groups)
    report = as_json(
        groups, {"rounds": plan.rounds, "quick": quick, "groups": list(only or GROUPS)}
    )
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(report, indent=2) + "\n")
    console.print(
        f"{report['python']}, {report['machine']['cpu']}, {report['machine']['cores']} cores, "
        f"load {report['machine']['load'][0]}; stored in {json_path}",
        highlight=False,
        soft_wrap=True,
    )
    if check and not verdict(groups):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
