"""The page of a demo run: one file, no network, charts as inline SVG, light and dark."""

from __future__ import annotations

import json
import math
from html import escape
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ._demo.model import Sample, SideRun, Verdict
    from ._demo.run import ScenarioRun

WIDTH, HEIGHT = 560, 230
LEFT, RIGHT, TOP, BOTTOM = 40, 92, 20, 28
LABEL_GAP = 15.0

_BADGE = {
    "ok": "kept every promise",
    "fails": "fails",
    "survived": "survived this time",
    "broken": "BROKE ITS PROMISE",
}


class Line(NamedTuple):
    """One line of a chart; `css` picks its colour, for light and dark."""

    label: str
    css: str
    points: list[tuple[float, float]]


def _nice_step(top: float, ticks: int) -> float:
    rough = max(top, 1) / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    return max(1.0, next(m * power for m in (1, 2, 5, 10) if m * power >= rough))


def _path(points: Sequence[tuple[float, float]], *, steps: bool) -> str:
    parts: list[str] = []
    for number, (x, y) in enumerate(points):
        if number == 0:
            parts.append(f"M{x:.1f} {y:.1f}")
        elif steps:
            parts.append(f"H{x:.1f}V{y:.1f}")
        else:
            parts.append(f"L{x:.1f} {y:.1f}")
    return "".join(parts)


def _spread(wanted: Sequence[float], low: float, high: float) -> list[float]:
    """Label positions near the wanted ones, at least LABEL_GAP apart and inside the plot."""
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    placed = list(wanted)
    previous = low - LABEL_GAP
    for index in order:
        placed[index] = previous = max(wanted[index], previous + LABEL_GAP)
    limit = high
    for index in reversed(order):
        placed[index] = limit = min(placed[index], limit)
        limit -= LABEL_GAP
    return placed


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    end: float,
    steps: bool,
    rule: tuple[float, str] | None = None,
    marks: Sequence[tuple[float, str]] = (),
    area: Line | None = None,
) -> str:
    """One line chart. *rule*: a dashed level with its name; *marks*: moments with their names."""
    highest = max([1.0, *(y for line in lines for _, y in line.points)])
    if rule is not None:
        highest = max(highest, rule[0])
    step = _nice_step(highest * 1.04, 4)
    top = math.ceil(highest * 1.04 / step) * step
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(at: float) -> float:
        return LEFT + (right - LEFT) * min(1.0, at / end)

    def y(value: float) -> float:
        return bottom - (bottom - TOP) * value / top

    def place(line: Line) -> list[tuple[float, float]]:
        return [(x(at), y(value)) for at, value in line.points]

    out: list[str] = []
    value = 0.0
    while value <= top + step / 2:
        out.append(
            f'<path class="grid" d="M{LEFT} {y(value):.1f}H{right}"/>'
            f'<text class="tick" x="{LEFT - 7}" y="{y(value) + 4:.1f}" text-anchor="end">'
            f"{value:,.0f}</text>"
        )
        value += step
    every = 2 if end <= 20 else 5 if end <= 60 else 20
    out += [
        f'<text class="tick" x="{x(second):.1f}" y="{bottom + 18}" text-anchor="middle">'
        f"{second} s</text>"
        for second in range(0, int(end) + 1, every)
    ]
    notes: list[str] = []  # drawn last: words stay readable where a line crosses them
    for at, name in marks:
        out.append(f'<path class="mark" d="M{x(at):.1f} {TOP}V{bottom}"/>')
        notes.append(f'<text class="note" x="{x(at) + 4:.1f}" y="{TOP - 4}">{escape(name)}</text>')
    if rule is not None:
        out.append(f'<path class="rule" d="M{LEFT} {y(rule[0]):.1f}H{right}"/>')
        notes.append(
            f'<text class="note" x="{LEFT + 6}" y="{y(rule[0]) - 6:.1f}">{escape(rule[1])}</text>'
        )
    if area is not None and area.points:
        shape = place(area)
        out.append(
            f'<path class="area {area.css}" d="{_path(shape, steps=steps)}'
            f'V{bottom}H{shape[0][0]:.1f}Z"/>'
        )
    drawn = [line for line in lines if line.points]
    out += [
        f'<path class="line {line.css}" d="{_path(place(line), steps=steps)}"/>' for line in drawn
    ]
    ends = [place(line)[-1] for line in drawn]
    for line, (end_x, end_y), label_y in zip(
        drawn, ends, _spread([at[1] for at in ends], TOP + 4, bottom), strict=True
    ):
        out.append(
            f'<circle class="dot {line.css}" cx="{end_x:.1f}" cy="{end_y:.1f}" r="3.5"/>'
            f'<text class="label {line.css}" x="{right + 9}" y="{label_y + 4:.1f}">'
            f"{escape(line.label)}</text>"
        )
    out += notes
    data = json.dumps(
        {
            "end": end,
            "lines": [
                {
                    "label": line.label,
                    "css": line.css,
                    "points": [[round(at, 2), value] for at, value in line.points],
                }
                for line in drawn
            ],
        },
        separators=(",", ":"),
    )
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" '
        f'data-chart="{escape(data)}">{"".join(out)}'
        f'<path class="cursor" d="M0 {TOP}V{bottom}" visibility="hidden"/></svg>'
        '<output class="readout"></output></figure>'
    )


def _series(mine: SideRun, value: Callable[[Sample], int]) -> list[tuple[float, float]]:
    """Points from the moment the load began (samples taken before it all bear the time 0)."""
    points: list[tuple[float, float]] = []
    for sample in mine.samples:
        if sample.at == 0 and points:
            points[0] = (0.0, float(value(sample)))
        else:
            points.append((sample.at, float(value(sample))))
    return points


def _charts(run: ScenarioRun) -> str:
    bare, guarded = run.sides["bare"], run.sides["guarded"]
    end = max([1.0, *(side.samples[-1].at for side in (bare, guarded) if side.samples)])
    marks = [(mark.at, mark.label) for mark in run.marks]
    if run.stopped_at is not None:
        marks.append((run.stopped_at, "stop"))
    stuck = _series(bare, lambda sample: sample.in_transaction)
    settled = run.scenario.settles and (bare.held or 0) > 0
    connections = chart(
        "Connections PostgreSQL has" + (" (shaded: idle in transaction)" if settled else ""),
        [
            Line("bare", "bare", _series(bare, lambda sample: sample.total)),
            Line("guarded", "guarded", _series(guarded, lambda sample: sample.total)),
        ],
        end=end,
        steps=True,
        rule=(run.scenario.bound, f"configured: at most {run.scenario.bound}"),
        marks=marks,
        area=Line("idle in transaction", "bare", stuck) if settled else None,
    )
    answers = [
        Line("bare", "bare", _series(bare, lambda sample: sample.ok)),
        Line("guarded", "guarded", _series(guarded, lambda sample: sample.ok)),
    ]
    if bare.tally.wrong or guarded.tally.wrong:
        worst = bare if bare.tally.wrong >= guarded.tally.wrong else guarded
        answers.append(
            Line(f"{worst.side}, wrong", "wrong", _series(worst, lambda sample: sample.wrong))
        )
    return connections + chart(
        "Right answers, added up", answers, end=end, steps=False, marks=marks
    )


def _cell(value: int | None, *, bad: bool) -> str:
    if value is None:
        return '<td class="num faint">—</td>'
    return f'<td class="num{" bad" if bad and value else ""}">{value:,}</td>'


def _row(name: str, mine: SideRun, verdict: Verdict, *, first: bool) -> str:
    scenario = f'<th scope="rowgroup" rowspan="2">{escape(name)}</th>' if first else ""
    over = " bad" if mine.peak > mine.bound else ""
    words = "; ".join(verdict.faults) or verdict.text
    return (
        f'<tr class="{verdict.kind}{" first" if first else ""}">{scenario}'
        f'<td><span class="key {mine.side}"></span>{mine.side}</td>'
        f'<td class="num{over}">{mine.peak}<span class="faint"> / {mine.bound}</span></td>'
        f"{_cell(mine.held, bad=True)}{_cell(mine.left_over, bad=True)}"
        f"{_cell(mine.tally.ok, bad=False)}{_cell(mine.tally.failed, bad=True)}"
        f"{_cell(mine.tally.wrong, bad=True)}"
        f'<td class="verdict {verdict.kind}">{escape(words)}</td></tr>'
    )


def _table(runs: Sequence[ScenarioRun]) -> str:
    rows = []
    for run in runs:
        verdicts = run.verdicts
        rows += [
            _row(run.scenario.name, mine, verdicts[side], first=side == "bare")
            for side, mine in run.sides.items()
        ]
    return (
        '<div class="scroll"><table><thead><tr><th>scenario</th><th>side</th>'
        '<th class="num" title="most connections seen at once / configured">peak</th>'
        '<th class="num" title="still in a transaction or query when no request ran">held</th>'
        '<th class="num" title="still there after the server process had ended">left over</th>'
        '<th class="num">right</th><th class="num">failed</th><th class="num">wrong rows</th>'
        f"<th>verdict</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _reasons(mine: SideRun) -> str:
    if not mine.tally.reasons:
        return ""
    items = "".join(
        f"<li><b>{count:,}&times;</b> <code>{escape(reason)}</code></li>"
        for reason, count in mine.tally.reasons.most_common(3)
    )
    return f'<div class="reasons"><h4>What {mine.side} clients were told</h4><ul>{items}</ul></div>'


def _issue(source: str) -> str:
    """`owner/name#number`, as a link to follow; the page itself loads nothing."""
    repository, _, number = source.partition("#")
    return f'<a href="https://github.com/{escape(repository)}/issues/{number}">{escape(source)}</a>'


def _scenario(run: ScenarioRun) -> str:
    scenario = run.scenario
    verdict = run.verdicts["guarded"]
    badge = "ok" if verdict.kind == "ok" else "broken"
    code = "\n".join(f"+ {line}" for line in scenario.difference.splitlines() if line)
    return f"""
<section id="{escape(scenario.name)}">
  <header>
    <h2>{escape(scenario.title)}</h2>
    <span class="badge {badge}">guarded: {escape(_BADGE[verdict.kind])}</span>
  </header>
  <div class="words">
    <p><span class="key bare"></span><b>Bare.</b> {escape(scenario.story)}</p>
    <p><span class="key guarded"></span><b>Guarded.</b> {escape(scenario.remedy)}</p>
  </div>
  <div class="charts">{_charts(run)}</div>
  <div class="below">
    <div>
      <h4>The server, on both sides</h4><pre>$ {escape(scenario.command)}</pre>
      <h4>What the guarded side adds to {escape(scenario.app.name)}</h4>
      <pre class="diff">{escape(code)}</pre>
    </div>
    <div>
      {_reasons(run.sides["bare"])}{_reasons(run.sides["guarded"])}
      <h4>Reported as</h4><p class="faint small">{", ".join(map(_issue, scenario.sources))}</p>
    </div>
  </div>
</section>"""


def _tiles(runs: Sequence[ScenarioRun]) -> str:
    def total(side: str, value: Callable[[SideRun], int]) -> int:
        return sum(value(mine) for run in runs for name, mine in run.sides.items() if name == side)

    questions: tuple[tuple[str, Callable[[SideRun], int]], ...] = (
        ("wrong rows delivered", lambda mine: mine.tally.wrong),
        ("failed requests", lambda mine: mine.tally.failed),
        ("connections held or left over", lambda mine: (mine.held or 0) + (mine.left_over or 0)),
        ("right answers", lambda mine: mine.tally.ok),
    )
    return "".join(
        f'<div class="tile"><h3>{escape(question)}</h3>'
        f'<p><span class="key bare"></span>bare <b>{total("bare", value):,}</b></p>'
        f'<p><span class="key guarded"></span>guarded <b>{total("guarded", value):,}</b></p></div>'
        for question, value in questions
    )


def page(runs: Sequence[ScenarioRun], about: Mapping[str, str]) -> str:
    """The whole page."""
    failing = [run for run in runs if run.verdicts["guarded"].kind == "broken"]
    if failing:
        lead = (
            '<p class="lead broken">lifeguard did not keep its promise in '
            f"{escape(', '.join(run.scenario.name for run in failing))}. This is a bug.</p>"
        )
    else:
        lead = (
            '<p class="lead">The same apps on the same servers under the same load, at the same '
            "time. The guarded side adds two or three lines.</p>"
        )
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in about.items()
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>lifeguard demo: bare and guarded</title>
<style>{_CSS}</style>
</head>
<body>
<main>
  <h1>life<span>guard</span> demo</h1>
  {lead}
  <div class="tiles">{_tiles(runs)}</div>
  {_table(runs)}
  <p class="faint small"><b>peak</b>: most connections at once, of those configured.
  <b>held</b>: in a transaction or a query although no request was running any more (— where
  requests run on to the end). <b>left over</b>: still in PostgreSQL after the server process had
  ended. <b>right, failed, wrong</b>: each request asks for a token of its own and checks what
  comes back. All counted in this run; the witness is <code>pg_stat_activity</code>, ten times a
  second.</p>
  {"".join(_scenario(run) for run in runs)}
  <footer><dl>{facts}</dl></footer>
</main>
<script>{_JS}</script>
</body>
</html>
"""


_CSS = """
:root{--paper:#fbfbf9;--card:#fff;--ink:#1d2329;--soft:#66707a;--hair:#e4e6e3;--bare:#cf4a3c;
--guarded:#0c7f86;--wrong:#8a3ab9;--good:#1c7a45;--badbg:#fdecea;--goodbg:#e5f4ea;--code:#f4f5f2}
@media (prefers-color-scheme:dark){:root{--paper:#14181c;--card:#1b2026;--ink:#e8ebed;
--soft:#98a3ad;--hair:#2d343b;--bare:#ff8273;--guarded:#46c6cd;--wrong:#cf9bf0;--good:#6fd197;
--badbg:#41211f;--goodbg:#173326;--code:#22282f}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1180px;margin:0 auto;padding:48px 24px 64px}
h1{font-size:40px;line-height:1.1;letter-spacing:-.02em;margin:0;font-weight:750}
h1 span{color:var(--guarded)}
h2{font-size:21px;line-height:1.3;letter-spacing:-.01em;margin:0}
h3,h4{font-size:13px;font-weight:600;color:var(--soft);margin:0}
h4{margin:16px 0 6px}
.lead{font-size:19px;color:var(--soft);margin:10px 0 28px;max-width:46em}
.lead.broken{color:var(--bare);font-weight:650}
.faint{color:var(--soft)}.small{font-size:13.5px;max-width:72em}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(210px,1fr));gap:14px;
margin-bottom:26px}
.tile{background:var(--card);border:1px solid var(--hair);border-radius:12px;padding:14px 18px}
.tile p{margin:4px 0 0;display:flex;align-items:center;color:var(--soft)}
.tile b{margin-left:auto;color:var(--ink);font-size:22px;font-variant-numeric:tabular-nums}
.key{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:8px;flex:none}
.key.bare{background:var(--bare)}.key.guarded{background:var(--guarded)}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--hair);border-radius:12px}
table{border-collapse:collapse;width:100%;font-size:14.5px}
th,td{padding:8px 12px;text-align:left;vertical-align:top;white-space:nowrap}
thead th{color:var(--soft);font-size:13px;font-weight:600;border-bottom:1px solid var(--hair)}
tbody tr.first>*{border-top:1px solid var(--hair)}tbody tr:first-child>*{border-top:0}
.num{text-align:right;font-variant-numeric:tabular-nums}
.bad{color:var(--bare);font-weight:650}.bad .faint{font-weight:400}
td.verdict{white-space:normal;min-width:17em}
td.verdict.ok{color:var(--good)}td.verdict.fails{color:var(--bare)}
tr.broken>td{background:var(--badbg)}td.verdict.broken{color:var(--bare);font-weight:700}
section{background:var(--card);border:1px solid var(--hair);border-radius:14px;
padding:24px 26px;margin-top:28px}
section header{display:flex;gap:16px;align-items:baseline;justify-content:space-between;
flex-wrap:wrap}
.badge{font-size:13px;font-weight:600;padding:3px 11px;border-radius:99px;white-space:nowrap}
.badge.ok{color:var(--good);background:var(--goodbg)}
.badge.broken{color:var(--bare);background:var(--badbg)}
.words{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));gap:4px 36px;
margin:12px 0 14px}
.words p{margin:0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));
gap:20px 36px}
figure{margin:0;position:relative}
figcaption{font-size:13px;font-weight:600;color:var(--soft);margin-bottom:2px}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif}
.tick,.note{fill:var(--soft)}svg .note{font-size:11px}
.note,.label{paint-order:stroke;stroke:var(--card);stroke-width:4px;stroke-linejoin:round}
.label{font-weight:650}svg .label{font-size:13px}
.grid{stroke:var(--hair);stroke-width:1}
.mark{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 3;opacity:.7}
.rule{stroke:var(--soft);stroke-width:1.3;stroke-dasharray:6 4}
.cursor{stroke:var(--ink);stroke-width:1;opacity:.35}
.line{fill:none;stroke-width:2.4;stroke-linejoin:round;stroke-linecap:round}
.line.bare{stroke:var(--bare)}.line.guarded{stroke:var(--guarded)}
.line.wrong{stroke:var(--wrong);stroke-dasharray:5 4}
.dot.bare,.label.bare{fill:var(--bare)}.dot.guarded,.label.guarded{fill:var(--guarded)}
.dot.wrong,.label.wrong{fill:var(--wrong)}
.area.bare{fill:var(--bare);opacity:.13}
.readout{position:absolute;top:0;right:0;font-size:12.5px;color:var(--soft);
font-variant-numeric:tabular-nums;background:var(--card);padding-left:8px}
.readout b{font-weight:650}.readout .bare{color:var(--bare)}
.readout .guarded{color:var(--guarded)}.readout .wrong{color:var(--wrong)}
.below{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));gap:0 36px}
pre{margin:0;padding:10px 14px;background:var(--code);border-radius:8px;white-space:pre-wrap;
font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre.diff{color:var(--good)}
code{font:12.5px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
a{color:inherit}h4+p{margin:0}
ul{margin:0;padding:0;list-style:none}li{font-size:14px;margin:3px 0}
footer{margin-top:32px;color:var(--soft);font-size:13px}
dl{display:flex;flex-wrap:wrap;gap:6px 26px;margin:0}dl div{display:flex;gap:7px}
dt{font-weight:600}dd{margin:0}
@media (max-width:560px){main{padding:28px 14px 40px}section{padding:18px 16px}}
"""

_JS = (
    """
for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const chart = JSON.parse(svg.dataset.chart), cursor = svg.querySelector(".cursor");
  const readout = svg.nextElementSibling, left = LEFT, right = WIDTH - RIGHT;
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    const x = Math.min(right, Math.max(left, (event.clientX - box.left) / box.width * WIDTH));
    const at = (x - left) / (right - left) * chart.end;
    cursor.setAttribute("transform", `translate(${x})`);
    cursor.setAttribute("visibility", "visible");
    readout.replaceChildren(`${at.toFixed(1)} s`);
    for (const line of chart.lines) {
      const point = line.points.findLast(p => p[0] <= at);
      if (!point) continue;
      const value = document.createElement("b");
      value.className = line.css;
      value.textContent = ` \\u00a0${line.label} ${point[1].toLocaleString("en")}`;
      readout.append(value);
    }
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    readout.replaceChildren();
  });
}
""".replace("WIDTH", str(WIDTH))
    .replace("LEFT", str(LEFT))
    .replace("RIGHT", str(RIGHT))
)
