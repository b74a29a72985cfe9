"""What one run measured, and what follows from it. No I/O: the verdict is a pure function."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any, Literal

SideName = Literal["bare", "guarded"]
SIDES: tuple[SideName, SideName] = ("bare", "guarded")

MAY_FAIL = 0.01
"""Share of guarded requests that may fail before it counts: a stalled machine times out, too."""


@dataclasses.dataclass(slots=True)
class Sample:
    """One side at one moment: what pg_stat_activity showed, and what its clients had got so far."""

    at: float
    """Seconds since the load began."""
    total: int
    active: int
    in_transaction: int
    ok: int = 0
    failed: int = 0
    wrong: int = 0


@dataclasses.dataclass(slots=True)
class Tally:
    """What the clients of one side got."""

    ok: int = 0
    failed: int = 0
    wrong: int = 0
    early: int = 0
    """Ended early on purpose: the client left, or a deploy cut a long request. Not a failure."""
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)

    def fail(self, reason: str) -> None:
        self.failed += 1
        self.reasons[reason] += 1


@dataclasses.dataclass(slots=True)
class SideRun:
    """One side of one scenario: filled in while it plays, read by the terminal and the page."""

    side: SideName
    bound: int
    samples: list[Sample] = dataclasses.field(default_factory=list)
    tally: Tally = dataclasses.field(default_factory=Tally)
    phase: str = "waiting"
    held: int | None = None
    """Connections still in a transaction or a query once no request was running any more."""
    left_over: int | None = None
    """Connections PostgreSQL still had after the server process had ended."""
    broke: str | None = None
    """Why this side could not be measured at all (the server did not start, ...)."""
    log: str = ""
    """The last lines the server wrote."""

    @property
    def now(self) -> int:
        return self.samples[-1].total if self.samples else 0

    @property
    def peak(self) -> int:
        return max((sample.total for sample in self.samples), default=0)


@dataclasses.dataclass(slots=True)
class Mark:
    """Something that happened to both sides at one moment: a reload, a stop."""

    at: float
    label: str


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """`ok`: guarded, kept its promise. `broken`: guarded, did not, or did worse than bare.
    `fails`: bare, shows the failure. `survived`: bare, nothing happened this time."""

    kind: Literal["ok", "broken", "fails", "survived"]
    faults: tuple[str, ...] = ()
    remark: str = ""

    @property
    def text(self) -> str:
        if self.kind == "ok":
            return "kept every promise" + self.remark
        if self.kind == "survived":
            return "survived this time"
        return ", ".join(self.faults)


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def faults_of(run: SideRun) -> list[str]:
    """Every promise this side broke, in words. The same rule for both sides."""
    if run.broke is not None:
        return [run.broke]
    faults = []
    if run.tally.wrong:
        faults.append(f"{_count(run.tally.wrong, 'wrong row')} delivered")
    if run.peak > run.bound:
        faults.append(f"{run.peak} connections, configured for {run.bound}")
    if run.held:
        faults.append(f"{_count(run.held, 'connection')} held although no request runs")
    if run.left_over:
        faults.append(f"{_count(run.left_over, 'connection')} left after the server ended")
    return faults


def judge(bare: SideRun, guarded: SideRun) -> tuple[Verdict, Verdict]:
    """The verdict on both sides of one scenario: (bare, guarded)."""
    bare_faults = faults_of(bare)
    if bare.tally.failed:
        bare_faults.append(_count(bare.tally.failed, "failed request"))
    guarded_faults, remark = faults_of(guarded), ""
    if guarded.broke is None:
        tally = guarded.tally
        if guarded.left_over is None or not guarded.samples:
            guarded_faults.append("not measured to the end")
        if not tally.ok:
            guarded_faults.append("not one request answered")
        if tally.failed > bare.tally.failed:
            guarded_faults.append(
                f"{_count(tally.failed, 'failed request')}, more than bare ({bare.tally.failed})"
            )
        elif tally.failed > MAY_FAIL * (tally.ok + tally.failed):
            guarded_faults.append(_count(tally.failed, "failed request"))
        elif tally.failed:
            remark = f", {_count(tally.failed, 'failed request')} on a busy machine"
    return (
        Verdict("fails", tuple(bare_faults)) if bare_faults else Verdict("survived"),
        Verdict("broken", tuple(guarded_faults))
        if guarded_faults
        else Verdict("ok", remark=remark),
    )


def as_json(run: SideRun, verdict: Verdict) -> dict[str, Any]:
    """One side, for a script."""
    return {
        "peak": run.peak,
        "bound": run.bound,
        "held": run.held,
        "left_over": run.left_over,
        "ok": run.tally.ok,
        "failed": run.tally.failed,
        "wrong": run.tally.wrong,
        "ended_early": run.tally.early,
        "reasons": dict(run.tally.reasons.most_common(5)),
        "verdict": verdict.kind,
        "faults": list(verdict.faults),
        "samples": [
            {
                "at": round(sample.at, 2),
                "total": sample.total,
                "active": sample.active,
                "in_transaction": sample.in_transaction,
                "ok": sample.ok,
                "failed": sample.failed,
                "wrong": sample.wrong,
            }
            for sample in run.samples
        ],
    }
