"""The terminal: two charts side by side while a scenario plays, one table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ._demo.model import SideName, SideRun, Verdict
    from ._demo.run import ScenarioRun
    from ._demo.scenarios import Scenario

COLOURS: dict[SideName, str] = {"bare": "red", "guarded": "green"}
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_VERDICT = {"ok": "bold green", "leaks": "red", "survived": "yellow", "broken": "bold white on red"}


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
    last: int | None = None
    newest = max((i for i, count in enumerate(columns) if count is not None), default=-1)
    for i in range(newest + 1):  # a column nobody sampled continues the one before
        last = columns[i] if columns[i] is not None else last
        columns[i] = last
    rule = height - 1 - min(height - 1, int(line / top * height))
    text = Text()
    for row in range(height):
        base = height - 1 - row
        label = str(top) if row == 0 else str(line) if row == rule else "0" if base == 0 else ""
        text.append(f"{label:>3} ", style="bright_black")
        for count in columns:
            filled = 0 if not count else max(0, min(8, round((count / top * height - base) * 8)))
            if filled:
                style = "bold bright_red" if count and count > line else colour
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
    figures = Text()
    figures.append(f"{mine.now:>3}", style="bold")
    figures.append(" connections now   peak ")
    figures.append(f"{mine.peak}", style="bold bright_red" if mine.peak > mine.bound else "bold")
    figures.append(f" of {mine.bound}\n")
    figures.append(f"{tally.ok:>5}", style="bold green" if tally.ok else "bold")
    figures.append(" right  ")
    figures.append(f"{tally.failed:>4}", style="bold red" if tally.failed else "bold")
    figures.append(" failed  ")
    figures.append(f"{tally.wrong:>4}", style="bold white on red" if tally.wrong else "bold")
    figures.append(" wrong row")
    if tally.reasons:
        reason = tally.reasons.most_common(1)[0][0]
        figures.append(f"\n{reason}", style="red")
    else:
        figures.append("\n")
    figures.truncate(10_000)
    body = Group(
        chart(
            [(sample.at, sample.total) for sample in mine.samples],
            width=max(10, width - 8),
            height=7,
            span=run.seconds + 4,
            top=top,
            line=mine.bound,
            colour=colour,
        ),
        Text.assemble(*_clip(figures, width - 4)),
    )
    return Panel(
        body,
        title=f"[bold {colour}]{mine.side}[/]",
        subtitle=f"[bright_black]{mine.phase}[/]",
        border_style=colour,
        width=width,
        padding=(0, 1),
    )


def _clip(text: Text, width: int) -> list[Text]:
    """Every line cut at *width*: the height of the picture must not change while it plays."""
    lines = []
    for line in text.split("\n"):
        line.truncate(width, overflow="ellipsis")
        line.append("\n")
        lines.append(line)
    return lines


def playing(run: ScenarioRun, number: int, of: int, console: Console) -> RenderableType:
    """The picture of one scenario, as it stands now."""
    scenario = run.scenario
    width = max(34, min(70, console.width // 2 - 1))
    top = max(scenario.bound + 2, *(side.peak for side in run.sides.values()))
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
    for side, verdict in verdicts.items():
        text.append(f"{side}: ", style=COLOURS[side])
        text.append(verdict.text.partition("\n")[0], style=_VERDICT[verdict.kind])
        if side == "bare":
            text.append("   ")
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
    result = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1))
    for name, justify in (
        ("scenario", "left"),
        ("side", "left"),
        ("peak / bound", "right"),
        ("held", "right"),
        ("left over", "right"),
        ("right", "right"),
        ("failed", "right"),
        ("wrong rows", "right"),
        ("verdict", "left"),
    ):
        result.add_column(name, justify=justify)  # type: ignore[arg-type]
    for run in runs:
        verdicts = run.verdicts
        for side, mine in run.sides.items():
            verdict: Verdict = verdicts[side]
            over = mine.peak > mine.bound
            result.add_row(
                Text(run.scenario.name if side == "bare" else "", style="bold"),
                Text(side, style=COLOURS[side]),
                Text(f"{mine.peak} / {mine.bound}", style="bold red" if over else ""),
                _number(mine.held, bad=True, unknown="—"),
                _number(mine.left_over, bad=True),
                _number(mine.tally.ok, bad=False),
                _number(mine.tally.failed, bad=True),
                _number(mine.tally.wrong, bad=True),
                Text(verdict.text, style=_VERDICT[verdict.kind]),
                style="on dark_red" if verdict.kind == "broken" else None,
                end_section=side == "guarded",
            )
    return result


def listing(scenarios: Sequence[Scenario]) -> RenderableType:
    """`lifeguard demo --list`."""
    parts: list[RenderableType] = []
    for scenario in scenarios:
        parts += [
            Text.assemble((scenario.name, "bold cyan"), "  ", (scenario.title, "bold")),
            Text("  $ " + scenario.command, style="green"),
            Text.assemble("  bare     ", scenario.story, overflow="fold"),
            Text.assemble("  guarded  ", scenario.remedy),
            Text.assemble("  adds     ", (scenario.difference.splitlines()[-1], "yellow")),
            Text.assemble("  reports  ", ", ".join(scenario.sources), style="bright_black"),
            Text(),
        ]
    return Group(*parts)
