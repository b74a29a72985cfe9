"""The commands and their options. What they do lives elsewhere, one module per command."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import NEEDS_EXTRA
from ._notices import notices, version

app = typer.Typer(
    name="lifeguard",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    epilog=(
        "[bold]Begin here[/bold]\n\n"
        "lifeguard demo                  see it work, on a real PostgreSQL\n\n"
        "lifeguard demo --list           what there is to see\n\n"
        "lifeguard demo --scenario fork  only this"
    ),
)
stderr = Console(stderr=True, highlight=False)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"lifeguard {version()}")
        raise typer.Exit


@app.callback()
def lifeguard(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Connection pools that open once, close once and never leak."""
    for text in notices():
        stderr.print(f"[yellow bold]lifeguard:[/] [yellow]{text}[/]", soft_wrap=True)


_DEMO_NEEDS = ("httpx", "psycopg", "psycopg_pool", "starlette", "uvicorn", "gunicorn", "celery")


@app.command(
    help=(
        "Watch small apps, bare and guarded, on real servers and a real PostgreSQL.\n\n"
        "Starts a PostgreSQL of its own (or uses the one of LIFEGUARD_DSN), plays both sides of "
        "each scenario at the same time, and shows what PostgreSQL and the clients saw. Every "
        "figure is measured in that run. Ctrl-C ends everything that was started.\n\n"
        "Exit status: 0 guarded kept every promise, 1 it did not, 2 wrong use, 130 stopped."
    ),
    epilog=(
        "[bold]Examples[/bold]\n\n"
        "lifeguard demo                                 everything, a bit over a minute\n\n"
        "lifeguard demo -s fork -s wsgi                 some of it\n\n"
        "lifeguard demo -s workers --seconds 20         take more time\n\n"
        "lifeguard demo --json --no-html > run.json     figures for a script\n\n"
        "LIFEGUARD_DSN=postgresql://... lifeguard demo  on your own PostgreSQL"
    ),
)
def demo(
    scenario: Annotated[
        list[str] | None,
        typer.Option("--scenario", "-s", metavar="NAME", help="Play only this one. Repeatable."),
    ] = None,
    list_only: Annotated[
        bool, typer.Option("--list", "-l", help="List the scenarios and exit.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Figures as JSON on stdout, progress on stderr.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=3, max=120, help="Seconds of load in each scenario.")
    ] = 8,
    html: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, metavar="PATH", help="Where to write the page.  [.lifeguard/demo.html]"
        ),
    ] = None,
    no_html: Annotated[bool, typer.Option("--no-html", help="Write no page.")] = False,
) -> None:
    """`lifeguard demo`: check the wishes, then hand over."""
    missing = [name for name in _DEMO_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        stderr.print(NEEDS_EXTRA.format(missing=", ".join(missing)), soft_wrap=True, markup=False)
        raise typer.Exit(2)
    from ._demo import command
    from ._demo.scenarios import BY_NAME, SCENARIOS

    unknown = [name for name in scenario or () if name not in BY_NAME]
    if unknown:
        stderr.print(
            f"lifeguard: no scenario is called {', '.join(map(repr, unknown))}. "
            f"There are: {', '.join(BY_NAME)}",
            soft_wrap=True,
            markup=False,
        )
        raise typer.Exit(2)
    chosen = tuple(each for each in SCENARIOS if not scenario or each.name in scenario)
    if list_only:
        if as_json:
            typer.echo(json.dumps([command.describe(each) for each in chosen], indent=2))
        else:
            command.show_list(chosen)
        return
    page = None if no_html else html or Path(".lifeguard", "demo.html")
    raise typer.Exit(command.run(chosen, seconds=seconds, as_json=as_json, page=page))
