"""Right answers after a fork: 110 of 110, whatever the parent had open and however it forked.

Two children and their parent ask at the same time, through the very same object. Bare, they share
its connection: answers go to the wrong process, or to none. (What was measured of the bare side is
in docs/fork.md.)
"""

from __future__ import annotations

import time

import pytest

from lifeguard.testing import Postgres
from tests.forks.conftest import Program, Start

KINDS = ["sync", "null", "async", "async-null", "connection", "async-connection"]
WAYS = [
    "os.fork",
    "thread",
    "double",
    "multiprocessing-fork",
    "forkserver",
    "spawn",
    "executor",
    "billiard",
]

CASES = [(kind, "os.fork") for kind in KINDS] + [("sync", way) for way in WAYS[1:]]


@pytest.mark.parametrize(("kind", "way"), CASES)
def test_every_answer_is_right(
    kind: str, way: str, start: Start, pg: Postgres, appname: str
) -> None:
    """Children and parent each get the answers to their own questions, from backends of their own,
    and the parent's connection is as good as before. Nothing is left when they have ended."""
    program = start("-m", "tests.forks.apps.answers", KIND=kind, WAY=way)
    assert program.wait() == 0, program.said()
    log = program.log
    assert log.read("failed") == [], program.said()
    answers = log.read("answer")
    assert [event["right"] for event in answers] == [True] * 112  # two of the parent, alone
    backends: dict[int, set[int]] = {}
    for event in answers:
        backends.setdefault(event.pid, set()).add(event["backend"])
    assert sorted(log.per_pid("answer").values()) == [12, 50, 50]
    used = [pid for pids in backends.values() for pid in pids]
    assert len(used) == len(set(used)), f"a backend served two processes: {backends}"
    if "null" not in kind:
        assert len(backends[program.popen.pid]) == 1, "the parent lost its connection"
    assert pg.wait_count(0, prefix=appname) == 0


def outcome(program: Program, seconds: float = 8.0) -> tuple[int, int, int]:
    """How many of 110 answers were right, wrong and failed; the rest did not come in time."""
    deadline = time.monotonic() + seconds
    while program.popen.poll() is None and time.monotonic() < deadline:
        events = program.log.read("answer", "failed")
        if any(event.event == "failed" or not event["right"] for event in events):
            break  # it is wrong: no need to see how wrong
        time.sleep(0.05)
    program.kill()
    answers = [event for event in program.log.read("answer") if event["backend"] is not None]
    right = sum(event["right"] for event in answers[1:])
    return right, len(answers) - 1 - right, program.log.count("failed")


@pytest.mark.parametrize("kind", ["sync", "connection"])
def test_bare_they_are_not(kind: str, start: Start) -> None:
    """The same program without lifeguard: answers of others, errors, or none at all."""
    program = start("-m", "tests.forks.apps.answers", KIND=kind, WAY="os.fork", APP_BARE="1")
    right, wrong, failed = outcome(program)
    assert right < 110, f"{right} right, {wrong} wrong, {failed} failed: {program.said()}"
