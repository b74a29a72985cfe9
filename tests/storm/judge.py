"""What a storm has shown, judged. Every line of :func:`violations` is a broken promise.

How a failed request is attributed, strictly by the log of the app: an attempt that

* began in a process which got a SIGKILL was held by that process, and is forgiven;
* began in any other process is a violation, whatever the error;
* began nowhere, but was answered with anything else than what was asked for, is one as well;
* began nowhere and was not answered was waiting in a socket that was closed. If a process of that
  server got a SIGKILL just then, that one held it. If a process was leaving just then (from the
  signal or from its last request, whichever was first, until it was gone), the server dropped it
  unread: the client asks again, and it is a violation if nobody answers in the end. At any other
  time it is one at once.

Clients that leave on purpose get no answer: for them only the units count.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.storm.storm import MAX_SIZE, Attempt, Record
from tests.support.eventlog import Event

NEAR = 0.3
"""Seconds by which "just then" may be wrong: the end of a process is noticed by looking."""
GHOST = 2.0
"""Seconds that a connection may be there after its process."""


@dataclass
class Verdict:
    name: str
    ends: int
    kinds: dict[str, int]
    processes: int = 0
    answered: int = 0
    left: int = 0
    """Attempts whose client left on purpose."""
    held: int = 0
    """Attempts that failed with the process that held them, which got a SIGKILL."""
    unread: int = 0
    """Attempts that no process had read when it left, and that were made again."""
    peak: int = 0
    living: int = 0
    ghost: float = 0.0
    samples: int = 0
    violations: list[str] = field(default_factory=list)
    diary: list[tuple[float, str]] = field(default_factory=list)
    log: str = ""
    """The end of the server's log, where something is wrong."""


def judge(record: Record, events: Iterable[Event], *, bare: bool = False) -> Verdict:
    """What the witnesses of one server say. Without lifeguard there are no units to count."""
    opened: Counter[int] = Counter()
    closed: Counter[int] = Counter()
    started: dict[str, list[int]] = defaultdict(list)
    last: dict[int, float] = {}  # when a process opened, or its last request began
    ended: Counter[str] = Counter()
    finished: Counter[str] = Counter()
    for event in events:
        if event.event == "opened":
            opened[event.pid] += 1
            last[event.pid] = event.at
        elif event.event == "closed":
            closed[event.pid] += 1
        elif event.event == "started":
            started[event["id"]].append(event.pid)
            last[event.pid] = event.at
        elif event.event == "ended":
            ended[event["id"]] += 1
        elif event.event == "finished":
            finished[event["id"]] += 1

    verdict = Verdict(record.name, record.ends, record.kinds(), processes=len(opened))
    verdict.diary = record.diary
    wrong = verdict.violations
    wrong += record.trouble

    for pid in opened:
        ends = f"{closed[pid]} times" if closed[pid] else "never"
        if opened[pid] != 1:
            wrong.append(f"process {pid} opened its pool {opened[pid]} times")
        elif closed[pid] > 1 or (closed[pid] == 0 and pid not in record.killed):
            how = record.told.get(pid, "recycle" if pid in record.gone else "stop of the server")
            wrong.append(f"process {pid} closed its pool {ends} ({how})")
    wrong += [f"process {pid} closed what it never opened" for pid in closed if not opened[pid]]

    for id_, pids in started.items():
        if len(pids) > 1:
            wrong.append(f"request {id_} began {len(pids)} times")
        if pids[0] in record.killed or bare:
            continue
        if (ended[id_], finished[id_]) != (1, 1):
            wrong.append(
                f"request {id_} of process {pids[0]} ended {ended[id_]} times, "
                f"its unit {finished[id_]} times"
            )

    kills = [(moment, moment) for moment in record.killed.values()]
    leaving = [  # it may have left already when it was told
        (min(last.get(pid, moment), record.told_at.get(pid, moment)), moment)
        for pid, moment in {**record.gone, **record.stopped}.items()
    ]
    dropped: set[str] = set()
    for attempt in record.attempts:
        if attempt.left:
            verdict.left += 1
        elif not attempt.error:
            verdict.answered += 1
        elif any(pid in record.killed for pid in started[attempt.id]):
            verdict.held += 1
        elif started[attempt.id]:
            [pid] = started[attempt.id]
            wrong.append(f"a request failed in process {pid}, not killed: {attempt.error}")
        elif attempt.answered:
            wrong.append(f"a request was refused: {attempt.error}")
        elif _near(attempt, kills):
            verdict.held += 1
        elif _near(attempt, leaving):
            verdict.unread += 1
            dropped.add(attempt.id)
        else:
            near = min((_distance(attempt, end) for end in kills + leaving), default=None)
            wrong.append(
                f"a request ({attempt.view}) failed although no process left: {attempt.error}, "
                f"after {attempt.ended - attempt.began:.2f} s, {near} s from the nearest end"
            )
    wrong += [
        f"a request failed for good: {attempt.error}"
        for attempt in record.given_up
        if attempt.id in dropped
    ]

    samples = record.samples
    verdict.peak, verdict.living = samples.peak, samples.living
    verdict.ghost, verdict.samples = round(samples.ghost, 2), samples.taken
    wrong += [f"{line}, {MAX_SIZE} are allowed" for line in samples.over]
    if samples.ghost > GHOST:
        wrong.append(f"a connection outlived its process by {samples.ghost:.1f} s")
    if record.left_connections:
        wrong.append(f"{record.left_connections} connections were left at the end")
    wrong += [f"process {pid} was left at the end" for pid in record.left_processes]
    wrong += [f"PostgreSQL: {line}" for line in record.complaints]
    return verdict


def _near(attempt: Attempt, times: Iterable[tuple[float, float]]) -> bool:
    return any(_distance(attempt, time) <= NEAR for time in times)


def _distance(attempt: Attempt, time: tuple[float, float]) -> float:
    """Seconds between the two, 0 if they overlap."""
    return round(max(0.0, time[0] - attempt.ended, attempt.began - time[1]), 2)


def complaints(log: str, prefix: str, killed: Iterable[int]) -> list[str]:
    """Lines of PostgreSQL's log about clients of this server that were just gone.

    The log has the application_name in each line, and so the process. Those that got a SIGKILL
    could say nothing.
    """
    words = ("unexpected EOF", "connection to client lost", "could not receive data")
    names = tuple(f"{prefix}{pid}." for pid in killed)
    return [
        line
        for line in log.splitlines()
        if prefix in line
        and any(word in line for word in words)
        and not any(name in line for name in names)
    ]
