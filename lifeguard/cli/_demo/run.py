"""Play scenarios: both sides at once, sampled by the witness, judged at the end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .model import SIDES, Mark, Sample, SideName, SideRun, Verdict, judge
from .reaper import Reaper
from .scenarios import Scenario, Stage
from .servers import ServerError, serving
from .witness import EVERY, Witness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

QUIET = 1.5
"""Seconds granted for what is right to be in progress: a rollback, a backend on its way out."""


@dataclasses.dataclass(slots=True)
class ScenarioRun:
    """One scenario, both sides: filled in while it plays."""

    scenario: Scenario
    seconds: float
    sides: dict[SideName, SideRun] = dataclasses.field(init=False)
    marks: list[Mark] = dataclasses.field(default_factory=list)
    stopped_at: float | None = None
    state: str = "waiting"

    def __post_init__(self) -> None:
        self.sides = {side: SideRun(side, self.scenario.bound) for side in SIDES}

    @property
    def verdicts(self) -> dict[SideName, Verdict]:
        bare, guarded = judge(self.sides["bare"], self.sides["guarded"])
        return {"bare": bare, "guarded": guarded}


class _Clock:
    """Zero until both servers listen: the load of both sides begins at the same moment."""

    def __init__(self) -> None:
        self.start: float | None = None

    @property
    def at(self) -> float:
        return 0.0 if self.start is None else time.monotonic() - self.start


@dataclasses.dataclass(slots=True)
class _Round:
    """What the two sides of one scenario share."""

    run: ScenarioRun
    witness: Witness
    directory: Path
    reaper: Reaper
    clock: _Clock = dataclasses.field(default_factory=_Clock)
    both: asyncio.Barrier = dataclasses.field(default_factory=lambda: asyncio.Barrier(len(SIDES)))


async def play(run: ScenarioRun, witness: Witness, directory: Path, reaper: Reaper) -> None:
    """One scenario from the start of its servers to the last backend."""
    await witness.limit(run.scenario.limit)
    here = _Round(run, witness, directory, reaper)
    run.state = "starting"
    async with _sampling(run, witness, here.clock), asyncio.TaskGroup() as sides:
        for side in SIDES:
            sides.create_task(_play_side(here, side))
    run.state = "done"


async def _play_side(here: _Round, side: SideName) -> None:
    run, witness, clock, both = here.run, here.witness, here.clock, here.both
    scenario, mine = run.scenario, run.sides[side]
    name = witness.name(scenario.name, side)
    uds = here.directory / f"{scenario.name[:2]}{side[0]}.sock"  # short: a path may have 103 bytes
    dsn = witness.dsn(scenario.name, side)

    def mark(label: str) -> None:
        if side == "bare":  # both sides get the same at the same moment: one mark for both
            run.marks.append(Mark(clock.at, label))

    try:
        async with serving(
            scenario.server, here.reaper, dsn=dsn, guarded=side == "guarded", uds=uds
        ) as server:
            mine.phase = "starting"
            try:
                await server.wait_until_ready(scenario.ready)
            except ServerError as error:
                mine.broke = str(error)
                await both.abort()  # the other side goes on alone
                return
            await _meet(both)
            if clock.start is None:
                clock.start = time.monotonic()
            run.state = mine.phase = "running"
            stage = Stage(server, uds, mine.tally, clock.start, run.seconds, mark)
            await scenario.load(stage)
            if server.exited:
                mine.broke = f"the server ended in the middle:\n{server.tail()}"
                await both.abort()
                return
            mine.phase = "quiet"
            if scenario.settles:
                mine.held = await witness.settled(name, within=QUIET, busy=True)
            await _meet(both)
            run.stopped_at = run.stopped_at or clock.at
            mine.phase = "stopping"
            await server.stop()
            mine.log = server.tail()
        mine.left_over = await witness.settled(name, within=QUIET)
        _add_sample(mine, (await witness.look([name], clock.at))[name])
    finally:
        mine.phase = "over"
        await witness.dismiss(name)


async def _meet(both: asyncio.Barrier) -> None:
    """Wait for the other side, unless it is not coming."""
    with contextlib.suppress(asyncio.BrokenBarrierError):
        await both.wait()


def _add_sample(mine: SideRun, sample: Sample) -> None:
    tally = mine.tally
    sample.ok, sample.failed, sample.wrong = tally.ok, tally.failed, tally.wrong
    mine.samples.append(sample)


@contextlib.asynccontextmanager
async def _sampling(run: ScenarioRun, witness: Witness, clock: _Clock) -> AsyncIterator[None]:
    names = {side: witness.name(run.scenario.name, side) for side in SIDES}

    async def watch() -> None:
        while True:
            seen = await witness.look(list(names.values()), clock.at)
            for side in SIDES:
                if run.sides[side].phase != "over":
                    _add_sample(run.sides[side], seen[names[side]])
            await asyncio.sleep(EVERY)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def play_all(runs: Sequence[ScenarioRun], witness: Witness) -> None:
    """All scenarios, one after another; both sides of each at the same time."""
    with Reaper() as reaper, tempfile.TemporaryDirectory(prefix="lifeguard-demo-") as directory:
        for run in runs:
            await play(run, witness, Path(directory), reaper)
