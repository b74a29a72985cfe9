"""Real servers in subprocesses: the same app twice, bare and guarded, and always ended by pid."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.support.eventlog import ENV, EventLog
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]

#: Arguments of ``python -m``; those of uWSGI, which is no module, of a script beside python.
SERVERS = {
    "uvicorn": "uvicorn {app}:app --port {port} --log-level info",
    "gunicorn": "gunicorn {app}:app --bind 127.0.0.1:{port} --no-control-socket",
    "waitress": "waitress --listen 127.0.0.1:{port} {app}:app",
    "hypercorn": "hypercorn --bind 127.0.0.1:{port} {app}:app",
    "daphne": "daphne -b 127.0.0.1 -p {port} {app}:app",
    "uwsgi": "uwsgi --http-socket 127.0.0.1:{port} --module {app}:app --master --die-on-term",
    "script": "{app}",
    "celery": "celery --app {app} worker --loglevel info --without-gossip"
    " --without-mingle --without-heartbeat",
}


@dataclass
class Process:
    """One side of an incident, in a process group of its own."""

    command: list[str]
    port: int
    dsn: str
    log: EventLog
    guarded: bool
    output: Path
    redis: str = ""
    overlay: Path | None = None
    """Other versions of packages than the environment has."""
    popen: subprocess.Popen[bytes] = field(init=False)
    killed: bool = False

    def __post_init__(self) -> None:
        env = {
            **os.environ,
            "INCIDENT_SIDE": "guarded" if self.guarded else "bare",
            "INCIDENT_DSN": self.dsn,
            "INCIDENT_PORT": str(self.port),
            "INCIDENT_REDIS": self.redis,
            ENV: str(self.log.path),
            "PYTHONPATH": os.pathsep.join(map(str, filter(None, [self.overlay, ROOT]))),
            "PYTHONUNBUFFERED": "1",
        }
        with self.output.open("wb") as output:
            self.popen = subprocess.Popen(
                self.argv(),
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def argv(self) -> list[str]:
        if self.command[0] == "uwsgi":
            return [str(Path(sys.executable).with_name("uwsgi")), *self.command[1:]]
        return [sys.executable, "-m", *self.command]

    @property
    def pid(self) -> int:
        return self.popen.pid

    def said(self) -> str:
        """What it wrote to stdout and stderr so far."""
        return self.output.read_text(errors="replace")

    def listens(self) -> bool:
        with socket.socket() as client:
            client.settimeout(1)
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def wait_until_listening(self, timeout: float = 60.0) -> Process:
        deadline = time.monotonic() + timeout
        while not self.listens():
            if self.popen.poll() is not None:
                raise AssertionError(f"it ended with {self.popen.returncode}:\n{self.said()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"nobody listens on port {self.port}:\n{self.said()}")
            time.sleep(0.02)
        return self

    def wait_until_deaf(self, timeout: float = 40.0) -> None:
        """Wait until it accepts no connections any more: it has begun to shut down."""
        deadline = time.monotonic() + timeout
        while self.listens():
            assert time.monotonic() < deadline, f"it still listens:\n{self.said()}"
            time.sleep(0.02)

    def get(self, path: str, timeout: float = 60.0) -> httpx.Response:
        url = f"http://127.0.0.1:{self.port}{path}"
        return httpx.get(url, timeout=timeout, trust_env=False, headers={"connection": "close"})

    def get_and_leave(self, path: str, when: str) -> None:
        """Send a request, and cut the connection once the app has logged *when*."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=40) as client:
            seen = self.log.count(when)
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            assert self.log.wait_count(when, seen + 1) > seen, self.said()

    def send(self, signum: int = signal.SIGTERM) -> None:
        self.popen.send_signal(signum)

    def wait(self, timeout: float = 60.0) -> int:
        """Its exit status. What does not end in time is a failure."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end:\n{self.said()}") from None

    def stop(self) -> int:
        self.send(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """End it and the workers it started, whatever state they are in. Once is enough."""
        if self.killed:
            return
        self.killed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait()
        self.log.close()


@dataclass
class Sides:
    """Starts both sides of an incident, the same code with the same options."""

    dsn: str
    directory: Path
    started: list[Process] = field(default_factory=list)
    redis: str = ""
    """A redis server, of which each side has a database of its own."""

    def start(
        self,
        server: str,
        app: str,
        *options: str,
        dsn: str | None = None,
        overlay: Path | None = None,
    ) -> tuple[Process, Process]:
        """The bare process and the guarded one, both running."""
        dsn = dsn or self.dsn
        pair = tuple(
            self._start(server, app, options, dsn, guarded, overlay) for guarded in (False, True)
        )
        return pair[0], pair[1]

    def serve(
        self, server: str, app: str, *options: str, dsn: str | None = None
    ) -> tuple[Process, Process]:
        """The same, when both listen."""
        bare, guarded = self.start(server, app, *options, dsn=dsn)
        return bare.wait_until_listening(), guarded.wait_until_listening()

    def run(self, app: str, *, dsn: str | None = None) -> tuple[Process, Process]:
        """Two scripts, run to their ends."""
        bare, guarded = self.start("script", app, dsn=dsn)
        bare.wait()
        guarded.wait()
        return bare, guarded

    def run_one(self, app: str, *, guarded: bool, dsn: str | None = None) -> Process:
        """One side of a script, run to its end: for what the two would fight over."""
        process = self._start("script", app, (), dsn or self.dsn, guarded, None)
        process.wait()
        return process

    def _start(
        self,
        server: str,
        app: str,
        options: tuple[str, ...],
        dsn: str,
        guarded: bool,
        overlay: Path | None,
    ) -> Process:
        side = "guarded" if guarded else "bare"
        port = free_port()
        command = SERVERS[server].format(app=f"tests.incidents.apps.{app}", port=port).split()
        where = len(command) if server == "celery" else 1
        command[where:where] = options
        process = Process(
            command=command,
            port=port,
            dsn=dsn,
            log=EventLog(self.directory / f"{side}.jsonl"),
            guarded=guarded,
            output=self.directory / f"{side}.txt",
            redis=f"{self.redis}/{int(guarded)}" if self.redis else "",
            overlay=overlay,
        )
        self.started.append(process)
        return process


@contextlib.contextmanager
def both_sides(dsn: str, directory: Path) -> Iterator[Sides]:
    sides = Sides(dsn, directory)
    try:
        yield sides
    finally:
        for process in sides.started:
            process.kill()
