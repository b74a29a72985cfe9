"""What runs at the end: of a task that ends in every way, of a child, and of a worker.

Each execution is a unit, which ends once, after the task's own ``finally`` and in its thread.
What a process has opened closes once, last opened first, when its units are over. That holds for
everything that ends in Python; a SIGKILL does not, and PostgreSQL clears up after it.

The bare side has what people use for the same: ``after_return``, and ``atexit``.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from dataclasses import dataclass

import pytest
from celery.result import AsyncResult

from tests.celery.worker import POOLS, CeleryWorker, Workers
from tests.support.eventlog import Event

pytestmark = pytest.mark.timeout(400)

OPENED = ["settings", "db"]
CLOSED = OPENED[::-1]

LIMIT = 3.0
"""A time limit that is not over before its task is in the middle of its work."""

_names = itertools.count(1)


# -- what is to hold ------------------------------------------------------------------------------


class Run:
    """One execution of a task, as the event log shows it."""

    def __init__(self, events: list[Event], start: Event) -> None:
        self.start = start
        mine = [event for event in events if event.extra.get("key") == start["key"]]
        self.events = [event.event for event in mine]
        self.threads = {(event.pid, event.thread) for event in mine}

    @property
    def is_over(self) -> bool:
        """It ended in Python, the unit after the task, once, and all of it in one thread."""
        steps = [event for event in self.events if event != "busy"]
        return steps == ["start", "finally", "callback"] and len(self.threads) == 1


def runs(worker: CeleryWorker, name: str) -> list[Run]:
    events = worker.log.read()
    return [
        Run(events, event) for event in events if event.event == "start" and event["name"] == name
    ]


def over(worker: CeleryWorker, name: str, *, executions: int = 1, timeout: float = 60.0) -> None:
    """Wait until each execution of the task of this name is over, and as it should be."""
    deadline = time.monotonic() + timeout
    while True:
        found = runs(worker, name)
        if len(found) >= executions and all("callback" in run.events for run in found):
            break
        assert time.monotonic() < deadline, [run.events for run in found]
        time.sleep(0.02)
    assert [run.events for run in found if not run.is_over] == []
    assert len(found) == executions


def ended_well(worker: CeleryWorker, killed: frozenset[int] = frozenset()) -> None:
    """Every process that opened something has closed it, once, and after its last unit."""
    opened = worker.log.per_pid("open")
    assert opened
    for pid in opened:
        events = [event for event in worker.log.read() if event.pid == pid]
        opens = [event["what"] for event in events if event.event == "open"]
        closes = [event["what"] for event in events if event.event == "close"]
        assert opens == OPENED
        if pid in killed:
            assert closes in ([], CLOSED)
            continue
        assert closes == CLOSED, f"process {pid}: {story(worker, pid)}"
        first = next(n for n, event in enumerate(events) if event.event == "close")
        late = [event for event in events[first:] if event.event != "close"]
        assert late == [], story(worker, pid)
        # From two handlers of the project's, before all others and after. Not where Celery sends
        # no signal: at a cold shutdown of the other pools.
        farewells = sum(event.event == "farewell" for event in events)
        assert farewells in ({2} if worker.pool == "prefork" else {0, 2}), story(worker, pid)


def story(worker: CeleryWorker, pid: int | None = None) -> str:
    """What happened, for a test that fails."""
    return "\n".join(
        f"{event.at:.3f} {event.pid} {event.event} {event.extra}"
        for event in worker.log.read()
        if pid is None or event.pid == pid
    )


def gone(worker: CeleryWorker, killed: frozenset[int] = frozenset()) -> None:
    """The worker has ended: its processes have closed everything, nothing is left."""
    ended_well(worker, killed)
    assert worker.left() == 0
    if not killed:
        assert worker.unclean() == [], story(worker)


def busy(
    worker: CeleryWorker, how: str = "busy", **options: float
) -> tuple[str, AsyncResult[object], int]:
    """A task that is in the middle of its work: its name, its result, its process."""
    name = f"{how} {next(_names)}"
    result = worker.send("work", how, name, **options)
    worker.wait_until(
        lambda: any("busy" in run.events for run in runs(worker, name)), f"the start of {name!r}"
    )
    (run,) = runs(worker, name)
    return name, result, run.start.pid


def backends(worker: CeleryWorker, pid: int) -> int:
    """How many of the connections are there that this process has opened."""
    opened = [event["backend"] for event in worker.log.read("connected") if event.pid == pid]
    assert opened
    with worker.pg.connect() as conn:
        row = conn.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)", [opened]
        ).fetchone()
    assert row is not None
    return int(row[0])


def has_left(worker: CeleryWorker, pid: int, *, timeout: float) -> None:
    """A child is gone, and so are its connections."""
    worker.wait_until(lambda: pid not in worker.children(), f"the end of child {pid}", timeout)
    worker.wait_until(lambda: backends(worker, pid) == 0, f"the end of {pid}'s backends", timeout)


# -- ways a task ends -----------------------------------------------------------------------------


class Shared:
    """A worker of each pool, for all tests that it survives."""

    def __init__(self, start: Workers) -> None:
        self.start = start
        self.workers: dict[str, CeleryWorker] = {}
        self.last: dict[str, str] = {}
        """The task that each of them ends with."""
        self.killed: dict[str, set[int]] = {}
        """Processes that had no chance to close anything."""

    def end(self) -> None:
        """Tell all of them to end, once, so that they do it at the same time. Busy they are, but
        prefork, which is busy when others tell it."""
        for pool, worker in self.workers.items():
            if pool in self.last or worker.popen.poll() is not None:
                continue
            self.last[pool] = "" if pool == "prefork" else busy(worker)[0]
            worker.send_signal(signal.SIGTERM)
            worker.wait_until(lambda: WARM in worker.said(), WARM)
            worker.open_gate(self.last[pool] or "none")

    def __call__(self, pool: str) -> CeleryWorker:
        if pool not in self.workers:
            self.workers[pool] = self.start("ends", pool=pool, concurrency=2)
            self.killed[pool] = set()
        return self.workers[pool]


@pytest.fixture(scope="module")
def shared(start_shared: Workers) -> Shared:
    return Shared(start_shared)


@dataclass(frozen=True)
class Way:
    """How a task ends, and what Celery makes of it, where that is certain."""

    how: str
    state: str
    executions: int = 1
    task: str = "work"


WAYS = [
    Way("success", "SUCCESS"),
    Way("failure", "FAILURE"),
    Way("retry", "", executions=2),  # two at once may write their states in any order
    Way("Reject", "FAILURE"),
    Way("Ignore", ""),
    Way("on_success raises", "SUCCESS", task="loud"),
    Way("cannot be serialised", "FAILURE"),
]


@pytest.mark.celery
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.how)
@pytest.mark.parametrize("pool", POOLS)
def test_a_task_ends(pool: str, way: Way, shared: Shared) -> None:
    """Whatever a task returns or raises: each execution is one unit. A retry is two."""
    worker = shared(pool)
    name = f"{way.how} {next(_names)}"
    result = worker.send(way.task, way.how, name)
    over(worker, name, executions=way.executions)
    if way.state:
        assert worker.gather([result])[0].state == way.state


@pytest.mark.celery
@pytest.mark.parametrize("how", ["SystemExit", "KeyboardInterrupt"])
@pytest.mark.parametrize("pool", ["threads", "gevent", "eventlet"])
def test_a_task_wants_to_exit(pool: str, how: str, shared: Shared) -> None:
    """It ends, and nothing else does: these pools run many tasks in their only process."""
    worker = shared(pool)
    name = f"{how} {next(_names)}"
    worker.send("work", how, name)
    over(worker, name)
    assert worker.run("work", "success").ok


@pytest.mark.celery
def test_soft_time_limit(shared: Shared) -> None:
    """SoftTimeLimitExceeded is an exception like others, and the child lives on."""
    worker = shared("prefork")
    name, result, pid = busy(worker, soft_time_limit=LIMIT)
    assert worker.gather([result])[0].state == "FAILURE"
    over(worker, name)
    assert pid in worker.children()


@pytest.mark.celery
def test_hard_time_limit_of_gevent(shared: Shared) -> None:
    """There it is an exception as well, raised in the task's greenlet."""
    worker = shared("gevent")
    name, result, _ = busy(worker, time_limit=LIMIT)
    assert worker.gather([result])[0].state == "FAILURE"
    over(worker, name)


@pytest.mark.celery
@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_revoked_greenlet(pool: str, shared: Shared) -> None:
    """``revoke(terminate=True)`` raises GreenletExit in the task."""
    worker = shared(pool)
    name, result, _ = busy(worker)
    worker.revoke(result)
    assert worker.gather([result])[0].state == "REVOKED"
    over(worker, name)


@pytest.mark.celery
def test_threads_know_no_limits(shared: Shared) -> None:
    """Celery cannot interrupt a thread: neither limits nor a revoke reach the task, which ends
    when it ends, and its unit then."""
    worker = shared("threads")
    name, result, _ = busy(worker, soft_time_limit=0.1, time_limit=0.2)
    worker.revoke(result)
    assert worker.run("work", "success").ok
    assert [run.events for run in runs(worker, name)] == [["start", "busy"]]
    worker.open_gate(name)
    assert worker.gather([result])[0].ok
    over(worker, name)


# -- ways a prefork child ends --------------------------------------------------------------------


@pytest.mark.celery
@pytest.mark.parametrize("how", ["SystemExit", "KeyboardInterrupt", "SIGTERM", "revoke"])
def test_a_child_ends(how: str, shared: Shared) -> None:
    """A child that ends with its task: the unit is over, then everything closes, and the worker
    goes on with another child. SIGTERM is sent straight to it, as systemd does to a group."""
    worker = shared("prefork")
    if how in ("SIGTERM", "revoke"):
        name, result, pid = busy(worker)
        if how == "SIGTERM":
            worker.send_signal(signal.SIGTERM, pid)
        else:
            worker.revoke(result)
        over(worker, name)
    else:
        name = f"{how} {next(_names)}"
        worker.send("work", how, name)
        over(worker, name)
        pid = runs(worker, name)[0].start.pid
    has_left(worker, pid, timeout=60)
    closes = [event["what"] for event in worker.log.read("close") if event.pid == pid]
    assert closes == CLOSED
    assert worker.run("work", "success").ok


@pytest.mark.celery
@pytest.mark.parametrize("how", ["SIGKILL", "revoke", "os._exit", "hard limit"])
def test_a_child_is_killed(how: str, shared: Shared) -> None:
    """No Python runs in it any more. Its connections end although one is in a long query, and
    the worker goes on. (A hard time limit is a SIGTERM, and 0.1 s later a SIGKILL: the unit may be
    over, or not.)"""
    worker = shared("prefork")
    if how == "os._exit":
        name = f"{how} {next(_names)}"
        worker.send("work", how, name)
        worker.wait_until(lambda: bool(runs(worker, name)), "its start")
        pid = runs(worker, name)[0].start.pid
    else:
        limit = {"time_limit": LIMIT} if how == "hard limit" else {}
        name, result, pid = busy(worker, "busy in a query", **limit)
        if how == "SIGKILL":
            worker.send_signal(signal.SIGKILL, pid)
        elif how == "revoke":
            worker.revoke(result, "SIGKILL")
    shared.killed["prefork"].add(pid)
    has_left(worker, pid, timeout=60)
    (run,) = runs(worker, name)
    assert run.events.count("callback") <= (how == "hard limit")
    assert worker.run("work", "success").ok


# -- ways a worker ends ---------------------------------------------------------------------------


WARM, CANCEL = "Warm shutdown", "Hitting Ctrl+C again will terminate"


@pytest.mark.celery
@pytest.mark.parametrize("pool", POOLS)
def test_sigterm(pool: str, shared: Shared) -> None:
    """The usual end of a deployment, after all that has happened before: a worker of prefork that
    has nothing to do, and of the other pools one that has."""
    worker = shared(pool)
    if pool not in shared.last:
        assert worker.run("work", "success").ok
        shared.end()
    assert worker.wait() == 0
    if shared.last[pool]:
        over(worker, shared.last[pool])
    gone(worker, frozenset(shared.killed[pool]))


@dataclass(frozen=True)
class End:
    """Signals to a worker that is busy, what it says to each of them, and what comes of it."""

    name: str
    pool: str
    signals: tuple[tuple[int, str], ...]
    to_group: bool = False
    waits: bool = False
    """Whether the worker waits for the task, so that the test has to let it end."""
    succeeds: bool = False
    env: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.pool}, {self.name}"


TERM, QUIT, INT = signal.SIGTERM, signal.SIGQUIT, signal.SIGINT
PATIENT = {"waits": True, "succeeds": True}
ENDS = [
    End("SIGTERM twice", "prefork", ((TERM, WARM), (TERM, WARM)), **PATIENT),
    End("SIGQUIT", "prefork", ((QUIT, CANCEL),)),
    End("SIGINT twice", "prefork", ((INT, WARM), (INT, CANCEL))),
    End("SIGTERM is SIGQUIT", "prefork", ((TERM, CANCEL),), env=(("REMAP_SIGTERM", "SIGQUIT"),)),
    End("SIGTERM to the group", "prefork", ((TERM, WARM),), to_group=True),
    End("SIGQUIT", "threads", ((QUIT, CANCEL),), waits=True),
    End("SIGQUIT", "solo", ((QUIT, CANCEL),)),
    End("SIGQUIT", "gevent", ((QUIT, CANCEL),)),
]


@pytest.mark.celery
@pytest.mark.parametrize("end", ENDS, ids=str)
def test_a_busy_worker_ends(end: End, start: Workers) -> None:
    """The task's unit is over before anything closes, and everything closes once."""
    signalled(end, start)


def test_sigterm_busy(start: Workers) -> None:
    """The usual end of a deployment, in each run of the tests."""
    signalled(End("SIGTERM", "prefork", ((TERM, WARM),), **PATIENT), start)


def signalled(end: End, start: Workers) -> None:
    worker = start("ends", pool=end.pool, concurrency=2, env=dict(end.env))
    name, result, _ = busy(worker)
    for number, word in end.signals:
        if end.to_group:
            os.killpg(worker.pid, number)
        else:
            worker.send_signal(number)
        worker.wait_until(lambda: word in worker.said(), word)
    if end.waits:
        worker.open_gate(name)
    worker.wait()
    over(worker, name)
    if end.succeeds:
        assert worker.gather([result])[0].ok
    gone(worker)


@pytest.mark.celery
@pytest.mark.parametrize(("pool", "how"), [("prefork", "MemoryError"), ("solo", "SystemExit")])
def test_a_task_ends_its_worker(pool: str, how: str, start: Workers) -> None:
    """Celery ends after a MemoryError in a child; in solo, the worker is the only process."""
    worker = start("ends", pool=pool, concurrency=2)
    name = f"{how} {next(_names)}"
    worker.send("work", how, name)
    assert worker.wait() == 1
    over(worker, name)
    gone(worker)


RECYCLED = {
    "success": "--max-tasks-per-child 2",
    "hog": "--max-memory-per-child 120000",
}


@pytest.mark.celery
def test_children_are_replaced(start: Workers) -> None:
    """``max-tasks-per-child`` and ``max-memory-per-child``: each child closes what it had, and its
    successor opens its own. (Two workers at the same time: Celery looks every five seconds.)"""
    workers = {how: start("ends", concurrency=1, options=RECYCLED[how]) for how in RECYCLED}
    names = {how: [f"{how} {next(_names)}" for _ in range(4)] for how in RECYCLED}
    names["hog"] = names["hog"][:2]
    sent = {
        how: worker.send_all("work", [(how, name) for name in names[how]])
        for how, worker in workers.items()
    }
    for how, worker in workers.items():
        assert all(answer.ok for answer in worker.gather(sent[how]))
        for name in names[how]:
            over(worker, name)
        assert list(worker.log.per_pid("start").values()) == [len(names[how]) // 2] * 2
        worker.wait_until(lambda: worker.log.count("close") == 4, "the second child's end")
        ended_well(worker)
        worker.send_signal(signal.SIGTERM)
    for worker in workers.values():
        assert worker.wait() == 0
        gone(worker)


@pytest.mark.celery
def test_the_parent_is_killed(start: Workers) -> None:
    """Its children are killed by the kernel, in the middle of a query: PostgreSQL ends it."""
    worker = start("ends", concurrency=1)
    name, _, pid = busy(worker, "busy in a query")
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    worker.wait_until(lambda: backends(worker, pid) == 0, "the end of its backends", 60)
    (run,) = runs(worker, name)
    assert run.events == ["start", "busy"]
    gone(worker, frozenset({pid}))


# -- bare -----------------------------------------------------------------------------------------


@pytest.mark.celery
def test_bare(start: Workers) -> None:
    """What people use for it: ``after_return`` is not called for a retry, Reject, Ignore and
    SystemExit, and ``atexit`` never runs in a prefork child."""
    worker = start("ends", bare=True, concurrency=2)
    ways = ("success", "failure", "retry", "Reject", "Ignore", "SystemExit")
    for how in ways:
        worker.send("work", how, how)
        executions = 2 if how == "retry" else 1
        worker.wait_until(lambda: worker_has_ended(worker, how, executions), how)
    worker.stop()
    seen = {how: [run.events[-1] for run in runs(worker, how)] for how in ways}
    assert seen == {
        "success": ["callback"],
        "failure": ["callback"],
        "retry": ["finally", "callback"],
        "Reject": ["finally"],
        "Ignore": ["finally"],
        "SystemExit": ["finally"],
    }
    assert worker.log.read("close") == []
    assert worker.left() == 0
    assert worker.unclean() != []


def worker_has_ended(worker: CeleryWorker, name: str, executions: int) -> bool:
    found = runs(worker, name)
    return len(found) == executions and all("finally" in run.events for run in found)
