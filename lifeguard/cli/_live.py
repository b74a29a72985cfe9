"""The terminal: two charts side by side while a scenario plays, one table at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._demo.model import SideName, SideRun, Verdict
    from ._demo.run import ScenarioRun
    from ._demo.scenarios import Scenario

COLOURS: dict[SideName, str] = {"bare": "red", "guarded": "green"}
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_WORD = {"ok": "kept", "fails": "fails", "survived": "survived", "broken": "BROKEN"}
_VERDICT = {"ok": "bold green", "fails": "red", "survived": "yellow", "broken": "bold white on red"}


def chart(
    values: Sequence[tuple[float, int]],
    *,
    width: int,
    height: int,
    span: float,
    top: int,
    line: int,
    colour: str,
) -> Text:
    """Columns of *values* (time, count) over *span* seconds, with a dashed rule at *line*."""
    columns: list[int | None] = [None] * width
    for at, count in values:
        column = min(width - 1, int(at / span * width))
        if column >= 0:
            columns[column] = max(columns[column] or 0, count)
    newest = max((i for i, count in enumerate(columns) if count is not None), default=-1)
    for i in range(1, newest + 1):  # a column nobody sampled continues the one before
        if columns[i] is None:
            columns[i] = columns[i - 1]
    rule = height - 1 - min(height - 1, int(line / top * height))
    text = Text()
    for row in range(height):
        base = height - 1 - row
        label = str(line) if row == rule else "0" if base == 0 else ""
        text.append(f"{label:>3} ", style="bright_black")
        for column_count in columns:
            value = column_count or 0
            filled = max(0, min(8, round((value / top * height - base) * 8)))
            if filled:
                style = "bold bright_red" if value > line else colour
                text.append(_EIGHTHS[filled], style=style)
            elif row == rule:
                text.append("╌", style="bright_black")
            else:
                text.append(" ")
        text.append("\n")
    return text


def _side(run: ScenarioRun, mine: SideRun, *, width: int, top: int) -> Panel:
    colour = COLOURS[mine.side]
    tally = mine.tally
    figures = Text(no_wrap=True, overflow="ellipsis")
    figures.append(f"{mine.now:>3}", style="bold")
    figures.append(" connections now   peak ")
    figures.append(f"{mine.peak}", style="bold bright_red" if mine.peak > mine.bound else "bold")
    figures.append(f" of {mine.bound}\n")
    figures.append(f"{tally.ok:>5}", style="bold green" if tally.ok else "bold")
    figures.append(" right ")
    figures.append(f"{tally.failed:>4}", style="bold red" if tally.failed else "bold")
    figures.append(" failed ")
    figures.append(f"{tally.wrong:>4}", style="bold white on red" if tally.wrong else "bold")
    figures.append(" wrong")
    reason = tally.reasons.most_common(1)[0][0] if tally.reasons else " "
    figures.append(f"\n{reason}", style="red")
    body = Group(
        chart(
            [(sample.at, sample.total) for sample in mine.samples],
            width=max(10, width - 8),
            height=8,
            span=run.seconds + 4,
            top=top,
            line=mine.bound,
            colour=colour,
        ),
        figures,
    )
    return Panel(
        body,
        title=f"[bold {colour}]{mine.side}[/]",
        subtitle=f"[bright_black]{mine.phase}[/]",
        border_style=colour,
        width=width,
        padding=(0, 1),
    )


def playing(run: ScenarioRun, number: int, of: int, console: Console) -> RenderableType:
    """The picture of one scenario, as it stands now."""
    scenario = run.scenario
    width = max(34, min(70, console.width // 2 - 1))
    highest = max(scenario.bound, *(side.peak for side in run.sides.values()))
    top = highest + max(1, highest // 7)
    heading = Text.assemble(
        (f" {number}/{of} ", "reverse"), " ", (scenario.title, "bold"), no_wrap=True
    )
    story = Text(scenario.story, style="bright_black")
    panels = [_side(run, side, width=width, top=top) for side in run.sides.values()]
    code = Syntax(
        scenario.difference.splitlines()[-1],
        "python",
        theme="ansi_dark",
        background_color="default",
    )
    return Group(
        Text(),
        heading,
        Text("$ " + scenario.command, style="cyan"),
        story,
        Columns(panels, padding=(0, 1)),
        Columns([Text("the guarded side adds:", style="bright_black"), code]),
    )


def summary_line(run: ScenarioRun) -> Text:
    """What stays in the terminal when a scenario is over."""
    text = Text(" ")
    verdicts = run.verdicts
    mark, style = ("✗", "bold red") if verdicts["guarded"].kind == "broken" else ("✓", "bold green")
    text.append(mark + " ", style=style)
    text.append(f"{run.scenario.name:<12}", style="bold")
    order: tuple[SideName, SideName] = ("guarded", "bare")
    for side in order:
        if side == "bare":
            text.append("  |", style="bright_black")
        text.append(f" {side}: ", style=COLOURS[side])
        text.append(verdicts[side].text.partition("\n")[0], style=_VERDICT[verdicts[side].kind])
    return text


def progress_line(run: ScenarioRun) -> str:
    """One plain line, for a log."""
    sides = (
        f"{side} {mine.now} connections, {mine.tally.ok} ok {mine.tally.failed} failed "
        f"{mine.tally.wrong} wrong"
        for side, mine in run.sides.items()
    )
    return f"{run.scenario.name:<12} {run.state:<9} | " + " | ".join(sides)


def _number(value: int | None, *, bad: bool, unknown: str = "?") -> Text:
    if value is None:
        return Text(unknown, style="bright_black")
    return Text(f"{value:,}", style="bold red" if bad and value else "")


def table(runs: Sequence[ScenarioRun]) -> Table:
    """The end: every scenario, both sides."""
    result = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    for name in ("scenario", "side"):
        result.add_column(name, no_wrap=True)
    for name in ("peak/max", "held", "left", "right", "failed", "wrong"):
        result.add_column(name, justify="right", no_wrap=True)
    result.add_column("verdict", no_wrap=True)
    for run in runs:
        verdicts = run.verdicts
        for side, mine in run.sides.items():
            verdict: Verdict = verdicts[side]
            over = mine.peak > mine.bound
            result.add_row(
                Text(run.scenario.name if side == "bare" else "", style="bold"),
                Text(side, style=COLOURS[side]),
                Text(f"{mine.peak}/{mine.bound}", style="bold red" if over else ""),
                _number(mine.held, bad=True, unknown="—"),
                _number(mine.left_over, bad=True),
                _number(mine.tally.ok, bad=False),
                _number(mine.tally.failed, bad=True),
                _number(mine.tally.wrong, bad=True),
                Text(_WORD[verdict.kind], style=_VERDICT[verdict.kind]),
                style="on dark_red" if verdict.kind == "broken" else None,
                end_section=side == "guarded",
            )
    return result


def listing(scenarios: Sequence[Scenario]) -> RenderableType:
    """`lifeguard demo --list`."""
    parts: list[RenderableType] = []
    for scenario in scenarios:
        lines = Table.grid(padding=(0, 2, 0, 0))
        lines.add_column(style="bright_black", no_wrap=True)
        lines.add_column(overflow="fold")
        lines.add_row("  server", Text(scenario.command, style="green"))
        lines.add_row("  bare", scenario.story)
        lines.add_row("  guarded", scenario.remedy)
        lines.add_row("  adds", Text(scenario.difference.splitlines()[-1], style="yellow"))
        lines.add_row("  reports", ", ".join(scenario.sources))
        title = Text.assemble((scenario.name, "bold cyan"), "  ", (scenario.title, "bold"))
        parts += [title, lines, Text()]
    return Group(*parts)
