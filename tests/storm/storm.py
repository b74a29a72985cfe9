"""The storm: servers under load whose workers end at random moments, in every way there is.

Each server has two workers, clients that ask, stream and leave, and somebody who ends its workers:
SIGTERM and SIGKILL to one of them, SIGHUP to the master; the servers that can do so replace
workers after some requests on top. What happened is written down, by the app (the event log), by
PostgreSQL (``pg_stat_activity``, its log) and by the clients; :mod:`tests.storm.judge` reads it.
"""

from __future__ import annotations

import http.client
import os
import random
import re
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from lifeguard.testing import Postgres
from tests.servers.harness import Server, reset
from tests.servers.rows import ROWS, STREAM, Row

WORKERS = 2
MAX_SIZE = 2
"""Of the pool of the app (tests/servers/apps): each process has one."""
CLIENTS = 4
"""Threads that ask, per server."""
ATTEMPTS = 5
"""How often a client asks before it gives up. It asks again only where nothing was answered."""
PATIENCE = 40.0
"""Seconds that a client waits: longer than a server stands still without a worker."""
SAMPLE_EVERY = 0.02
SETTLE_WITHIN = 10.0
"""Seconds for a server to end, and for its connections to be gone, at the end of all."""


@dataclass(frozen=True)
class Target:
    """A server of the storm, and the options that make it one."""

    name: str
    row: Row
    options: str
    hook: str = ""
    """What it is given on top where the app is guarded."""
    share: int = 4
    """Of the ends, relative to the others'."""
    weights: tuple[int, int, int] = (3, 2, 1)
    """How often a worker gets SIGTERM, and SIGKILL, and the master SIGHUP."""
    least_age: float = 0.0
    """Seconds that every worker must have served before one of them is ended."""


def _row(name: str) -> Row:
    [row] = [row for row in ROWS if row.name == name]
    return row


TARGETS = (
    Target(
        "uvicorn",
        _row("uvicorn, 2 workers"),
        # It kills a worker that is not ready, or does not answer, within so many seconds, which a
        # busy machine may need; and stands still for as long when one ends while it is asked.
        "--limit-max-requests 8 --limit-max-requests-jitter 16 --timeout-worker-healthcheck 10",
    ),
    Target(
        "gunicorn gthread",
        _row("gunicorn gthread"),
        f"--workers {WORKERS} --max-requests 8 --max-requests-jitter 16",
        hook="-c python:lifeguard.gunicorn",
    ),
    Target(
        "granian",
        _row("granian asgi"),
        f"--workers {WORKERS} --respawn-failed-workers --respawn-interval 2",
        share=1,
        weights=(2, 2, 3),  # it does not replace workers after some requests
        # It gives up when a worker dies within 5.5 s after it was replaced. Each worker listens
        # for itself, so that somebody has to be there, and new ones before old ones go.
        least_age=6.0,
    ),
)


@dataclass
class Attempt:
    """One request on one connection."""

    id: str
    view: str
    began: float
    ended: float = 0.0
    error: str = ""
    answered: bool = False
    """Whether there was a byte of an answer."""
    left: bool = False
    """Whether the client left on purpose."""


@dataclass
class Samples:
    """What ``pg_stat_activity`` said about one server."""

    taken: int = 0
    peak: int = 0
    peak_of_one: int = 0
    """Of one living process: each has a pool of its own."""
    living: int = 0
    """The most processes that had connections at once, those that were leaving included."""
    ghost: float = 0.0
    """The longest, in seconds, that a connection was there after its process."""
    over: list[str] = field(default_factory=list)


@dataclass
class Record:
    """All that is known about one server at the end."""

    name: str
    killed: dict[int, float] = field(default_factory=dict)
    """Pid and moment of those that got a SIGKILL."""
    told: dict[int, str] = field(default_factory=dict)
    """Pid and kind of those that were told to end."""
    told_at: dict[int, float] = field(default_factory=dict)
    gone: dict[int, float] = field(default_factory=dict)
    """Pid and moment of those that have ended before the storm was over."""
    stopped: dict[int, float] = field(default_factory=dict)
    """The same of those that ended with their server."""
    attempts: list[Attempt] = field(default_factory=list)
    given_up: list[Attempt] = field(default_factory=list)
    samples: Samples = field(default_factory=Samples)
    left_processes: list[int] = field(default_factory=list)
    left_connections: int = 0
    complaints: list[str] = field(default_factory=list)
    diary: list[tuple[float, str]] = field(default_factory=list)
    """Seconds since its begin, and what was done then."""
    trouble: list[str] = field(default_factory=list)
    """What kept the storm itself from going on."""

    @property
    def ends(self) -> int:
        return len(self.gone)

    def kinds(self) -> dict[str, int]:
        kinds: dict[str, int] = defaultdict(int)
        for pid in self.gone:
            kinds[self.told.get(pid, "recycle")] += 1
        return dict(kinds)


class Blow:
    """The storm over one server. :meth:`start` it, wait for :attr:`enough`, then :meth:`stop`."""

    def __init__(
        self, target: Target, folder: Path, pg: Postgres, *, seed: int, ends: int, bare: bool
    ) -> None:
        self.target = target
        self.wanted = ends
        self.seed = f"{seed} {target.name}"
        self.prefix = f"storm.{re.sub('[^a-z]+', '-', target.name)}."
        self.record = Record(target.name)
        more = target.options if bare else f"{target.options} {target.hook}"
        self.server = Server(target.row, folder, pg, self.prefix, bare=bare, more=more)
        self.pg = pg
        self.over = threading.Event()
        self.began = 0.0
        self.pause = 0.7  # seconds between two ends that are ordered, on average
        self.quiet_until = 0.0  # a reload is under way
        self.since: dict[int, float] = {}  # pid, and when it was first seen
        self._threads: list[threading.Thread] = []
        self._opened = _Tail(self.server.events.path)

    @property
    def enough(self) -> bool:
        return self.record.ends >= self.wanted or bool(self.record.trouble)

    def note(self, what: str) -> None:
        self.record.diary.append((round(time.monotonic() - self.began, 2), what))

    def start(self) -> None:
        self.server.start()
        self.began = time.monotonic()
        self._run(self._end_workers)
        for number in range(CLIENTS):
            self._run(self._ask, number)

    def _run(self, work: Callable[..., None], *args: object) -> None:
        def run() -> None:
            try:
                work(*args)
            except Exception as exc:
                self.record.trouble.append(f"{work.__name__}: {exc!r}")
                self.over.set()

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """End the load, then the server, and look at what is left."""
        self.over.set()
        for thread in self._threads:
            thread.join()
        self.serving()
        before = set(self.record.gone)
        try:
            self.server.terminate()
        except Exception as exc:
            self.record.trouble.append(f"the server did not end: {exc!r}")
        deadline = time.monotonic() + SETTLE_WITHIN
        while (left := self.serving()) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.record.left_processes = sorted(left)
        for pid in set(self.record.gone) - before:  # ended with their server: not by the storm
            self.record.stopped[pid] = self.record.gone.pop(pid)
        self.record.left_connections = self.pg.wait_count(
            0, prefix=self.prefix, timeout=SETTLE_WITHIN
        )
        self.server.kill()

    # -- those who end workers -----------------------------------------------------------------

    def serving(self) -> set[int]:
        """The workers that have opened their pool and are there. Notes which ones are gone."""
        now = time.monotonic()
        alive = set()
        for pid in self._opened.pids():
            if pid in self.record.gone:
                continue
            if is_alive(pid):
                alive.add(pid)
            else:
                self.record.gone[pid] = now
                self.note(f"{pid} is gone")
        return alive

    def _end_workers(self) -> None:
        dice = random.Random(f"{self.seed} ends")
        while not self.over.wait(dice.uniform(0.2, 2 * self.pause)):
            kind = dice.choices(("SIGTERM", "SIGKILL", "reload"), self.target.weights)[0]
            which = dice.random()
            if self.server.process.poll() is not None:
                self.record.trouble.append(f"the server ended: {self.server.tail(20)}")
                return
            there = sorted(self.serving())
            if self.record.ends >= self.wanted or not there or not self._may_end(there):
                continue
            if kind == "reload":
                for pid in there:
                    self._tell(pid, kind)
                self.note("reload")
                self.quiet_until = time.monotonic() + 2 * self.target.least_age
                self.server.process.send_signal(signal.SIGHUP)
                continue
            pid = there[int(which * len(there))]
            self._tell(pid, kind)
            self.note(f"{kind} to {pid}")
            if kind == "SIGKILL":
                self.record.killed[pid] = time.monotonic()
            try:
                os.kill(pid, getattr(signal, kind))
            except ProcessLookupError:
                pass

    def _tell(self, pid: int, kind: str) -> None:
        if kind == "SIGKILL" or pid not in self.record.told:
            self.record.told[pid] = kind
        self.record.told_at.setdefault(pid, time.monotonic())

    def _may_end(self, there: list[int]) -> bool:
        if not self.target.least_age:
            return True
        now = time.monotonic()
        ages = [now - self.since.setdefault(pid, now) for pid in there]
        return (
            len(there) == WORKERS and min(ages) >= self.target.least_age and now >= self.quiet_until
        )

    # -- those who ask -------------------------------------------------------------------------

    def _ask(self, number: int) -> None:
        dice = random.Random(f"{self.seed} client {number}")
        views = {"ok": self._get, "stream": self._get, "wait": self._leave, "flood": self._leave}
        while not self.over.wait(dice.uniform(0.01, 0.1)):
            view = dice.choices(tuple(views), (6, 3, 1, 1))[0]
            for nth in range(ATTEMPTS):
                time.sleep(0.1 * nth)
                attempt = Attempt(self.server.new_id(), view, time.monotonic())
                self.record.attempts.append(attempt)
                try:
                    views[view](attempt, dice)
                except (OSError, http.client.HTTPException) as exc:
                    attempt.error = repr(exc)
                attempt.ended = time.monotonic()
                if attempt.answered or attempt.left or not attempt.error:
                    break
            else:
                self.record.given_up.append(attempt)
                self.note(f"given up: {attempt.error}")

    def _get(self, attempt: Attempt, dice: random.Random) -> None:
        """Ask, and read the answer to its end."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)
        try:
            path = f"/{attempt.view}?id={attempt.id}"
            connection.request("GET", path, headers={"Connection": "close"})
            response = connection.getresponse()
            attempt.answered = True
            body = response.read().decode()
        finally:
            connection.close()
        lines = "".join(f"line {number}\n" for number in range(STREAM))
        expected = lines if attempt.view == "stream" else f"ok {attempt.id}"
        if (response.status, body) != (200, expected):
            attempt.error = f"{response.status} {body[:100]!r}"

    def _leave(self, attempt: Attempt, dice: random.Random) -> None:
        """Ask, and be gone in the middle of the view, or of the stream."""
        client = self.server.send(attempt.view, attempt.id)
        attempt.left = True
        try:
            if attempt.view == "flood":
                client.settimeout(1)  # a server that stops may keep what it got, and wait for us
                received = b""
                while b"first" not in received and (data := client.recv(65536)):
                    received += data
            else:
                time.sleep(dice.uniform(0, 0.1))
        finally:
            reset(client)
            time.sleep(dice.uniform(0, 0.05))
            self.server.open_gate(attempt.id)


class Sampler(threading.Thread):
    """Looks at ``pg_stat_activity`` all the time. A worker's pid is in its application_name."""

    def __init__(self, pg: Postgres, blows: list[Blow]) -> None:
        super().__init__(daemon=True)
        self._pg = pg
        self._blows = {blow.prefix: blow.record.samples for blow in blows}
        self._over = threading.Event()
        self._gone: dict[int, float] = {}
        self.error: Exception | None = None

    def stop(self) -> None:
        self._over.set()
        self.join()
        if self.error is not None:
            raise self.error

    def run(self) -> None:
        try:
            with self._pg.connect() as connection:
                while not self._over.wait(SAMPLE_EVERY):
                    rows = connection.execute(
                        "SELECT application_name, count(*) FROM pg_stat_activity"
                        " WHERE starts_with(application_name, 'storm.') GROUP BY 1"
                    ).fetchall()
                    self._note(rows)
        except Exception as exc:
            self.error = exc

    def _note(self, rows: list[tuple[str, int]]) -> None:
        now = time.monotonic()
        found: dict[str, dict[int, int]] = defaultdict(dict)
        for name, count in rows:
            prefix, pid = split_name(name)
            found[prefix][pid] = count
        for prefix, samples in self._blows.items():
            counts = found[prefix]
            samples.taken += 1
            samples.peak = max(samples.peak, sum(counts.values()))
            living = 0
            for pid, count in counts.items():
                if pid not in self._gone and not is_alive(pid):
                    self._gone[pid] = now
                if pid in self._gone:
                    samples.ghost = max(samples.ghost, now - self._gone[pid])
                    continue
                living += 1
                samples.peak_of_one = max(samples.peak_of_one, count)
                if count > MAX_SIZE:
                    samples.over.append(f"process {pid} had {count} connections")
            samples.living = max(samples.living, living)


class _Tail:
    """The pids that have opened their pool, read from the event log as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._pids: set[int] = set()
        self._lock = threading.Lock()

    def pids(self) -> set[int]:
        with self._lock, self._path.open("rb") as log:
            log.seek(self._offset)
            data = log.read()
            whole = data.rfind(b"\n") + 1
            self._offset += whole
            for line in data[:whole].splitlines():
                if b'"event": "opened"' in line and (pid := re.search(rb'"pid": (\d+)', line)):
                    self._pids.add(int(pid[1]))
            return set(self._pids)


def split_name(name: str) -> tuple[str, int]:
    """Server and process of an application_name: ``storm.uvicorn.123.``."""
    prefix, _, pid = name.rstrip(".").rpartition(".")
    return f"{prefix}.", int(pid)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
