"""One cell: a server is started, its worker is brought to its end, and the witnesses are heard.

They are the event log, which survives a SIGKILL, ``pg_stat_activity`` and PostgreSQL's own log.
The processes of a cell are its own; cells share nothing but PostgreSQL.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from lifeguard.testing import Postgres
from tests.matrix.events import SHORT, Event
from tests.servers.harness import Server
from tests.servers.rows import Row

UP_WITHIN = 30.0
SETTLE = 0.7
"""Seconds after the end of a worker in which the rest of its server may follow it."""
GONE_WITHIN = 1.0
"""Seconds after the end of a process in which PostgreSQL has to have noticed."""
LOOKS = (0.5, 5.0)
"""Seconds after the end at which the connections are counted."""

SETTINGS = {
    "log_line_prefix": "%m [%p] %a ",
    # An idle connection that is lost without a word is worth no more than this to PostgreSQL.
    "log_min_messages": "debug1",
}
LOST = re.compile("unexpected EOF|connection to client lost|could not receive data from client")

_numbers = itertools.count(1)


@dataclass
class Run:
    """What was seen when one event happened to one server, once."""

    row: Row
    event: Event
    bare: bool
    error: str = ""
    seconds: float | None = None
    """From the event to the end of whom it was for. None: they live on."""
    request: str = ""
    """The fate of the request in flight: its status, or how it was dropped."""
    ended: int = 0
    """How many workers have ended, without those that the event itself has killed."""
    lost: int = 0
    """How many of those had not closed what they had opened."""
    twice: int = 0
    """How many have opened or closed more than once."""
    outside: int = 0
    """How many processes that are no workers have opened something."""
    units: int = 0
    """How many units of those have begun and not finished."""
    backends: tuple[int, int] = (0, 0)
    """Connections of the ended processes at each of ``LOOKS`` after their end."""
    gone_after: float | None = None
    """Seconds until there were none. None: not by the last look."""
    complaints: list[str] = field(default_factory=list)
    """What PostgreSQL's log says of them."""
    story: str = ""


class Request(threading.Thread):
    """A request in flight, and its fate."""

    def __init__(self, server: Server, view: str) -> None:
        super().__init__(daemon=True)
        self.server, self.view, self.id = server, view, server.new_id()
        self.fate = "pending"
        self.start()

    def run(self) -> None:
        try:
            self.fate = str(self.server.get(self.view, self.id).status_code)
        except httpx.TimeoutException:
            self.fate = "unanswered"
        except httpx.TransportError:
            self.fate = "dropped"


def run(row: Row, event: Event, pg: Postgres, folder: Path, *, bare: bool = False) -> Run:
    """Start *row*, let *event* happen to it, and see what becomes of it."""
    folder = folder / f"{next(_numbers)}"
    folder.mkdir()
    slug = re.sub(r"[^a-z0-9]+", "-", f"{row.name} {event.key}")
    name = f"{slug}.{os.getpid()}.{folder.name}."
    seen = Run(row, event, bare)
    log_began = pg.log_path.stat().st_size if pg.log_path else 0
    server = Server(
        row,
        folder,
        pg,
        name,
        bare=bare,
        graceful=event.graceful,
        more=event.more(row),
        env=event.env(),
    )
    try:
        server.start()
        _Case(server, event, seen, name, log_began).observe()
    except (AssertionError, psutil.Error, OSError, httpx.HTTPError) as exc:
        seen.error = str(exc).strip() or repr(exc)
    finally:
        server.kill()
        said = _said(pg, log_began, name)
        seen.story = _story(server, seen, said)
    if pg.wait_count(0, prefix=name, timeout=12.0) != 0:
        seen.error = seen.error or "connections were left, with no process to have them"
    return seen


class _Case:
    """A running server and what is known of its processes."""

    def __init__(self, server: Server, event: Event, seen: Run, name: str, log_began: int) -> None:
        self.server, self.event, self.seen, self.name = server, event, seen, name
        self.row, self.pg = server.row, server.pg
        self.master = psutil.Process(server.process.pid)
        self.workers: dict[int, psutil.Process] = {}
        self.log_began = log_began

    def observe(self) -> None:
        self._bring_up()
        request = Request(self.server, self.event.view) if self.event.view else None
        if request is not None:
            self._wait_until_in_flight(request)
        target = self._target(request)
        hit = self.master.pid if self.event.to == "master" else target
        began = time.monotonic()
        if self.event.sends is not None:
            os.kill(hit, self.event.sends)
        gate = threading.Timer(SHORT, lambda: self.server.open_gate(request.id))
        if self.event.key == "busy":
            gate.start()
        if self.event.key == "recycle":
            target = self._recycle()
            began = max(
                event.at for event in self.server.events.read("ended") if event.pid == target
            )
        awaited = {
            "all": [self.master, *self.workers.values()],
            "workers": list(self.workers.values()),
            "one": [self.workers[target]],
        }[self.event.ends]
        if self._wait(self.event.wait, awaited):
            self.seen.seconds = round(time.monotonic() - began, 2)
        self._count([process.pid for process in awaited if not _lives(process)])
        if self.event.ends == "one":  # a server that stops as a whole is given the time to do so
            self._wait(SETTLE, [self.master, *self.workers.values()])
        self._witness({hit} if self.event.kills else set())
        gate.cancel()
        if request is not None:
            self.server.open_gate(request.id)
            if self.seen.seconds is not None:
                request.join(2.0)
            self.seen.request = request.fate

    # -- before --------------------------------------------------------------------------------

    def _bring_up(self) -> None:
        """Until each worker has served a request: on many servers that is what opens it."""
        deadline = time.monotonic() + UP_WITHIN
        with ThreadPoolExecutor(4) as clients:
            while len(self.server.events.per_pid("ended")) < self.row.workers:
                assert time.monotonic() < deadline, "its workers did not all come up"
                assert self.server.process.poll() is None, "it ended before anything happened"
                answers = set(clients.map(self._try, range(2 * self.row.workers))) - {"", "200"}
                assert not answers, f"before anything happened it answered {answers}"
        for pid in self.server.events.per_pid("ended"):
            self.workers[pid] = psutil.Process(pid)

    def _try(self, _: int) -> str:
        try:
            return str(self.server.get("ok", self.server.new_id()).status_code)
        except httpx.TransportError:
            time.sleep(0.02)
            return ""

    def _wait_until_in_flight(self, request: Request) -> None:
        if self.event.view != "query":
            self.server.wait_for("waiting", request.id)
            return
        self.server.wait_for("started", request.id)
        deadline = time.monotonic() + UP_WITHIN
        with self.pg.connect() as connection:
            while not connection.execute(
                "SELECT 1 FROM pg_stat_activity WHERE starts_with(application_name, %s)"
                " AND state = 'active' AND wait_event = 'PgSleep'",
                [self.name],
            ).fetchone():
                assert time.monotonic() < deadline, "the query did not begin"
                time.sleep(0.01)

    def _target(self, request: Request | None) -> int:
        """The worker it is about: the one that serves the request, or any."""
        if request is not None:
            return self.server.of(request.id)[0].pid
        return next(iter(self.workers))

    def _recycle(self) -> int:
        """Send requests until a worker has had enough of them and is gone. Which one."""
        deadline = time.monotonic() + self.event.wait
        while time.monotonic() < deadline:
            for pid, process in self.workers.items():
                if not _lives(process):
                    return pid
            self._try(0)
            time.sleep(0.01)
        return next(iter(self.workers))

    # -- after ---------------------------------------------------------------------------------

    def _wait(self, seconds: float, processes: list[psutil.Process]) -> bool:
        """Wait for their end, at most so long. True if they have ended."""
        deadline = time.monotonic() + seconds
        while True:
            self.server.process.poll()  # reaps it
            if not any(map(_lives, processes)):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)

    def _witness(self, killed: set[int]) -> None:
        """What can be said of the workers that have ended, and were not *killed* by us."""
        seen, events = self.seen, self.server.events
        opened, closed = events.per_pid("opened"), events.per_pid("closed")
        judged = {pid for pid, process in self.workers.items() if not _lives(process)} - killed
        seen.ended = len(judged)
        seen.lost = sum(closed[pid] < 1 for pid in judged)
        seen.twice = sum(opened[pid] > 1 or closed[pid] > 1 for pid in opened)
        seen.outside = int(self.row.master and self.master.pid in opened)
        if not seen.bare:
            begun, finished = (
                Counter(event["id"] for event in events.read(name) if event.pid in judged)
                for name in ("started", "finished")
            )
            seen.units = (begun - finished).total()
        names = tuple(f"{self.name}{pid}." for pid in judged)
        seen.complaints = [
            line
            for line in _said(self.pg, self.log_began, self.name)
            if LOST.search(line) and any(name in line for name in names)
        ]

    def _count(self, ended: list[int]) -> None:
        """Count the connections of those who ended, until there are none."""
        began = time.monotonic()
        looks: list[int] = []
        while True:
            count = sum(self.pg.count(prefix=f"{self.name}{pid}.") for pid in ended)
            after = time.monotonic() - began
            if len(looks) < len(LOOKS) and after >= LOOKS[len(looks)]:
                looks.append(count)
            if count == 0:
                self.seen.gone_after = round(after, 2)
                looks += [0] * (len(LOOKS) - len(looks))  # nobody is there to make new ones
            if len(looks) == len(LOOKS):
                self.seen.backends = (looks[0], looks[1])
                return
            time.sleep(0.02)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _said(pg: Postgres, began: int, name: str) -> list[str]:
    """What PostgreSQL's log says of connections that bear this name. Nothing, if it is not ours."""
    if pg.log_path is None:
        return []
    with pg.log_path.open("rb") as log:
        log.seek(began)
        text = log.read().decode(errors="replace")
    return [line for line in text.splitlines() if name in line]


def _story(server: Server, seen: Run, said: list[str]) -> str:
    events = [
        f"{event.pid} {event.event} {json.dumps(event.extra) if event.extra else ''}".rstrip()
        for event in server.events.read()
    ]
    parts = {
        "command": "python " + " ".join(server.command),
        "seen": ", ".join(
            f"{key}={value!r}"
            for key, value in vars(seen).items()
            if key not in ("row", "event", "story", "complaints")
        ),
        "events (pid, event)": "\n".join(events),
        "the server's log, its end": server.tail(),
        "PostgreSQL's log": "\n".join(said[-20:]),
    }
    return "\n".join(f"-- {title}\n{text}\n" for title, text in parts.items())
