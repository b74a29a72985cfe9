"""What one SELECT costs a Django site, by how it keeps its connections.

The same site under uvicorn (one worker) with Django's default, with its native pool and with
lifeguard's lanes, and under gunicorn's threads, over TCP with scram-sha-256 and over the unix
socket with trust. What is compared is the CPU time of the server's process per request: it is what
a machine has to be bought for, and other processes' noise disturbs it least.

This group stands apart from the others: real servers, real requests, and so hundreds of
microseconds instead of tenths of one.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from psycopg.conninfo import conninfo_to_dict

from bench._client import Client, Shots, client
from bench._measure import Plan
from bench._report import Group, Row, divide
from lifeguard.testing import Postgres, postgres

__all__ = ["measure"]

ROOT = Path(__file__).parent.parent
LANES = 8
CONNECTIONS = (1, 8, 32)
START_WITHIN = 30.0

UVICORN = (
    *("uvicorn", "bench._django.asgi:app", "--port", "{port}"),
    *("--log-level", "warning", "--no-access-log", "--timeout-keep-alive", "60"),
)
GTHREAD = (
    *("gunicorn", "bench._django.wsgi:app", "--bind", "127.0.0.1:{port}", "--workers", "1"),
    *("--worker-class", "gthread", "--threads", str(LANES), "--keep-alive", "60"),
    *("--log-level", "warning", "--no-control-socket"),
)
POOL = {"pool": {"min_size": LANES, "max_size": LANES}}

DEFAULT, NATIVE, LANED, LANED_NATIVE, THREADS = (
    *("default", "native pool", "lanes", "lanes, native pool", "WSGI threads"),
)


@dataclass(frozen=True)
class Site:
    """One way to serve the site. ``views`` are those measured: WSGI would run both alike."""

    name: str
    command: tuple[str, ...]
    database: dict[str, Any]
    guarded: bool = False
    views: tuple[str, ...] = ("sync", "async")


SITES = (
    Site(DEFAULT, UVICORN, {"CONN_MAX_AGE": 0}),
    Site(NATIVE, UVICORN, {"OPTIONS": POOL}),
    Site(LANED, UVICORN, {"CONN_MAX_AGE": 60}, guarded=True),
    Site(LANED_NATIVE, UVICORN, {"OPTIONS": POOL}, guarded=True),
    Site(THREADS, GTHREAD, {"CONN_MAX_AGE": 60}, views=("sync",)),
)


@dataclass
class Figures:
    """What one site showed for one view and number of connections, a value for each round."""

    cpu: list[float] = field(default_factory=list)
    """Microseconds of the server's CPU time per request."""
    database: list[float] = field(default_factory=list)
    """The same of PostgreSQL."""
    rate: list[float] = field(default_factory=list)
    """Requests per second."""
    p99: list[float] = field(default_factory=list)
    """Milliseconds that all but one in a hundred answers took at most."""
    backends: int = 0
    """Most connections seen at once."""
    errors: list[str] = field(default_factory=list)

    def add(self, shots: Shots, cpu: float, database: float, backends: int) -> None:
        count = max(1, len(shots.took))
        self.cpu.append(cpu / count * 1e6)
        self.database.append(database / count * 1e6)
        self.rate.append(len(shots.took) / shots.seconds)
        if len(shots.took) > 1:
            self.p99.append(statistics.quantiles(shots.took, n=100, method="inclusive")[98] * 1e3)
        self.backends = max(self.backends, backends)
        self.errors += shots.errors

    def row(self, name: str, yardstick: float) -> Row:
        return Row(
            name,
            min(self.cpu),
            statistics.median(self.cpu),
            ratio=divide(min(self.cpu), yardstick),
            more={
                "p99 ms": min(self.p99, default=float("nan")),
                "req/s": max(self.rate),
                "db us": statistics.median(self.database),
                "conns": self.backends,
            },
        )


class Server:
    """One site's server, up and warm, and a look at what it uses."""

    def __init__(self, site: Site, process: psutil.Process, port: int, name: str) -> None:
        self.site = site
        self.port = port
        self.name = name
        """The application_name of its connections."""
        # Both kinds of server have all their processes by the time they answer.
        self._pids = [process.pid, *(child.pid for child in process.children(recursive=True))]

    def cpu(self) -> float:
        """Seconds of CPU time that its processes have used up to now."""
        return sum(map(cpu_seconds, self._pids))


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of all threads it ever had, to the nanosecond where possible."""
    if sys.platform == "linux":
        return time.clock_gettime((~pid << 3) | 2)  # what clock_getcpuclockid() makes of a pid
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


class Backends:
    """What the database does meanwhile: its CPU time, and the most connections of one name."""

    def __init__(self, pg: Postgres) -> None:
        self._pg = pg
        self._master: psutil.Process | None = None
        if pg.log_path is not None:
            pid = (pg.log_path.parent / "data" / "postmaster.pid").read_text().split()[0]
            self._master = psutil.Process(int(pid))

    def cpu(self) -> float:
        """Seconds up to now, of backends that have ended, too. NaN for a server of somebody's."""
        if self._master is None:
            return float("nan")
        times = self._master.cpu_times()
        total = times.user + times.system + times.children_user + times.children_system
        for child in self._master.children():
            # One that has just ended is counted with its parent's children.
            with suppress(OSError, psutil.NoSuchProcess):
                total += cpu_seconds(child.pid)
        return total

    @contextmanager
    def peak(self, name: str) -> Iterator[Callable[[], int]]:
        """Watch the block; then what this gives says the most connections seen in it."""
        over = threading.Event()
        most = 0

        def watch() -> None:
            nonlocal most
            while True:
                most = max(most, self._pg.count(prefix=name))
                if over.wait(0.05):
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield lambda: most
        finally:
            over.set()
            watcher.join()


def measure(plan: Plan) -> Group:
    group = Group("django", "Django: one SELECT per request; CPU of the server", "us")
    group.yardstick = DEFAULT
    group.notes.append(
        f"tcp or unix, kind of view, requests at a time; {LANES} lanes, {LANES} in the pool and"
        f" {LANES} threads; targets are the worst of {', '.join(map(str, CONNECTIONS))} at a time"
    )
    rounds = max(1, plan.rounds // 25)
    seconds = 0.1 if plan.quick else 0.4
    with postgres(max_connections=300) as pg, client() as clients:
        ways = {"tcp, scram": pg.dsn}
        if pg.socket_dsn is not None:
            trust_the_socket(pg)
            ways["unix, trust"] = pg.socket_dsn
        else:
            group.notes.append("no unix socket: LIFEGUARD_DSN names the server")
        for way, dsn in ways.items():
            figures = compare(pg, dsn, clients, rounds, seconds)
            report(group, way, figures)
    return group


Figured = dict[tuple[str, int, str], Figures]
"""By view, connections and name of the site."""


def compare(pg: Postgres, dsn: str, clients: Client, rounds: int, seconds: float) -> Figured:
    """All sites are up at the same time and take turns: one at a time has anything to do."""
    backends = Backends(pg)
    found: Figured = {}
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(site, dsn)) for site in SITES]
        turns = [
            (view, connections, server)
            for view in ("sync", "async")
            for connections in CONNECTIONS
            for server in servers
            if view in server.site.views
        ]
        for round in range(-1, rounds):  # the first one warms up, and is not counted
            for view, connections, server in turns:
                shoot = partial(clients.shoot, server.port, f"/{view}", connections=connections)
                shoot(seconds=seconds / 5)  # the caches were another's meanwhile
                if round < 0:
                    continue
                with backends.peak(server.name) as peak:
                    before = server.cpu(), backends.cpu()
                    shots = shoot(seconds=seconds)
                    after = server.cpu(), backends.cpu()
                key = view, connections, server.site.name
                found.setdefault(key, Figures()).add(
                    shots, after[0] - before[0], after[1] - before[1], peak()
                )
    return found


def report(group: Group, way: str, figures: Figured) -> None:
    transport = way.partition(",")[0]
    for view in dict.fromkeys(view for view, _, _ in figures):
        ours: dict[str, list[float]] = {}
        for connections in CONNECTIONS:
            mine = {
                site.name: figures[view, connections, site.name]
                for site in SITES
                if (view, connections, site.name) in figures
            }
            cpu = {name: min(each.cpu) for name, each in mine.items()}
            for name, each in mine.items():
                where = f"{transport} {view} {connections:>2}: {name}"
                group.rows.append(each.row(where, cpu[DEFAULT]))
                for error in sorted(set(each.errors)):
                    group.notes.append(f"{where}: {each.errors.count(error)} x {error}")
            # The same work for both kinds of view: under WSGI there is one kind only.
            threads = min(figures["sync", connections, THREADS].cpu)
            p99 = (min(mine[name].p99, default=float("nan")) for name in (LANED, NATIVE))
            for name, value in {
                "default": divide(cpu[LANED], cpu[DEFAULT]),
                "pool": divide(cpu[LANED], cpu[NATIVE]),
                "threads": divide(cpu[LANED], threads),
                "p99": divide(*p99),
                "backends": mine[LANED].backends,
                "errors": len(mine[LANED].errors),
            }.items():
                ours.setdefault(name, []).append(value)
        where = f"{way}, {view} view, lanes"
        limit = 0.2 if transport == "tcp" else 0.4
        for name, of, most, unit in (
            ("default", "CPU / Django's default", limit, "x"),
            ("pool", "CPU / native pool", 0.6, "x"),
            ("threads", "CPU / WSGI threads", 1.25, "x"),
            ("p99", "p99 / native pool's", 1.0, "x"),
            ("backends", "most connections", LANES, ""),
            ("errors", "errors", 0, ""),
        ):
            group.target(where, of, max(ours[name]), most, unit)


@contextmanager
def serving(site: Site, dsn: str) -> Iterator[Server]:
    """The site's server for the block, warm."""
    port = free_port()
    name = f"bench {SITES.index(site)}"
    connect = conninfo_to_dict(dsn)
    keys = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST"}
    database = {
        **{ours: str(connect.pop(theirs, "")) for theirs, ours in keys.items()},
        "PORT": str(connect.pop("port", "")),
        **site.database,
        "OPTIONS": {**site.database.get("OPTIONS", {}), **connect, "application_name": name},
    }
    environment = {**os.environ, "BENCH_DB": json.dumps(database)}
    environment["DJANGO_SETTINGS_MODULE"] = "bench._django.settings"
    environment["BENCH_GUARDED"] = str(LANES) if site.guarded else ""
    command = [word.format(port=port) for word in site.command]
    with TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            if not listens(process, port):
                log.seek(0)
                raise RuntimeError(f"{site.name} did not start:\n{log.read()[-2000:]}")
            yield Server(site, psutil.Process(process.pid), port, name)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                for member in psutil.Process(process.pid).children(recursive=True):
                    member.kill()
                process.kill()
                process.wait()


def listens(process: subprocess.Popen[Any], port: int) -> bool:
    """True once it answers a request, which is when its workers are there."""
    deadline = time.monotonic() + START_WITHIN
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as probe:
                probe.sendall(b"GET /sync HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                return bool(probe.recv(4096).startswith(b"HTTP/1.1 200 "))
        except OSError:
            time.sleep(0.05)
    return False


def trust_the_socket(pg: Postgres) -> None:
    """Let local users in without a password, as many installations do."""
    with pg.connect() as conn:
        (path,) = conn.execute("SHOW hba_file").fetchone() or ("",)
        rules = Path(path)
        rules.write_text("local all all trust\n" + rules.read_text())
        conn.execute("SELECT pg_reload_conf()")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
