"""A real Celery worker in a process group of its own, a client that sends it tasks, and witnesses.

The broker and the result backend are a real redis, which all workers of a run share: each has a
prefix of its own for its keys there. What PostgreSQL saw is in its log, which tells opened
connections from those that were opened again, and in ``pg_stat_activity``; what the tasks saw is
in the event log.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from celery import Celery
from celery.result import AsyncResult

from lifeguard.testing import Postgres, postgres
from tests.celery.config import settings
from tests.support.celery import close
from tests.support.eventlog import ENV, EventLog
from tests.support.overlay import overlay

ROOT = Path(__file__).resolve().parents[2]

POOLS = ("prefork", "threads", "solo", "gevent", "eventlet")

# For a machine that is busy with other things.
READY_WITHIN = 90.0
ANSWER_WITHIN = 90.0
END_WITHIN = 60.0

LOGGED = {
    "log_connections": "on",
    "log_line_prefix": "[%p] %a: ",
    # The client that ends without a word is news at this level only, if it was idle.
    "log_min_messages": "debug1",
}

_OPENED = re.compile(r"connection authorized: .*?\bapplication_name=(\S+)")
_UNCLEAN = re.compile(r"unexpected EOF on client connection|could not receive data from client")


@contextlib.contextmanager
def logging_postgres(binaries: Path, max_connections: int = 100) -> Iterator[Postgres]:
    """A PostgreSQL whose log says who connected and who left without a word."""
    with postgres(binaries=binaries, max_connections=max_connections, settings=LOGGED) as server:
        yield server


@dataclass(frozen=True)
class Answer:
    """What became of a task: Celery's state, and the result or the exception."""

    state: str
    result: Any

    @property
    def ok(self) -> bool:
        return self.state == "SUCCESS"


class CeleryWorker:
    """``celery -A APP worker``. Its connections bear application_names that begin with `name`."""

    def __init__(
        self,
        app: str,
        folder: Path,
        pg: Postgres,
        broker: str,
        name: str,
        *,
        pool: str = "prefork",
        concurrency: int = 4,
        bare: bool = False,
        options: str = "",
        loglevel: str = "WARNING",
        versions: str | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.pg = pg
        self.pool = pool
        self.bare = bare
        self.concurrency = 1 if pool == "solo" else concurrency
        self.output = folder / "output.txt"
        self.gates = folder / "gates"
        self.gates.mkdir(exist_ok=True)
        self.log = EventLog(folder / "events.jsonl")
        self.client = client(broker, f"{name}.keys")
        self._seen = 0  # what the log of PostgreSQL already said
        if pg.log_path is not None:
            self._seen = pg.log_path.stat().st_size
        self._env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [*([str(overlay(versions))] if versions else []), str(ROOT)]
            ),
            "PYTHONUNBUFFERED": "1",
            "APP_DSN": pg.dsn,
            "APP_NAME": name,
            "APP_BROKER": broker,
            "APP_PREFIX": f"{name}.keys",
            "APP_GATES": str(self.gates),
            "APP_POOL": pool,
            ENV: str(self.log.path),
            **({"APP_BARE": "1"} if bare else {}),
            **(env or {}),
        }
        argv = (
            f"-m celery -A {app} worker --pool {pool} --concurrency {self.concurrency}"
            f" --loglevel {loglevel} --without-gossip --without-mingle --without-heartbeat"
            f" --hostname {name}@test {options}"
        )
        self.argv = [sys.executable, *argv.split()]
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> CeleryWorker:
        """Start it, and wait until it takes tasks (all children of a prefork pool are up)."""
        with self.output.open("ab") as output:
            self._popen = subprocess.Popen(
                self.argv,
                cwd=ROOT,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + READY_WITHIN
        while not self.log.count("ready"):
            if self.popen.poll() is not None:
                raise AssertionError(f"it ended with {self.popen.returncode}:\n{self.said()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"it is not ready:\n{self.said()}")
            time.sleep(0.02)
        return self

    # -- tasks ---------------------------------------------------------------------------------

    def send(self, task: str, *args: Any, **options: Any) -> AsyncResult[Any]:
        """Send one task. *options* are those of ``apply_async``, such as ``soft_time_limit``."""
        return self.client.send_task(task, args, **options)

    def send_all(self, task: str, arguments: Iterable[tuple[Any, ...]]) -> list[AsyncResult[Any]]:
        return [self.send(task, *args) for args in arguments]

    def gather(
        self, results: list[AsyncResult[Any]], *, within: float = ANSWER_WITHIN
    ) -> list[Answer]:
        """What became of them, in order. One that is not over in time has the state PENDING."""
        deadline = time.monotonic() + within
        backend = self.client.backend
        waiting = {result.id for result in results}
        answers: dict[str, Answer] = {}
        while waiting:
            ids = sorted(waiting)
            # One question for all of them: as fast as a subscription, and nothing to go stale.
            raw = backend.client.mget([backend.get_key_for_task(id) for id in ids])
            for id, payload in zip(ids, raw, strict=True):
                meta = {} if payload is None else backend.decode_result(payload)
                if meta.get("status") in ("SUCCESS", "FAILURE", "REVOKED", "REJECTED", "IGNORED"):
                    answers[id] = Answer(meta["status"], meta["result"])
                    waiting.discard(id)
            if not waiting or time.monotonic() > deadline:
                break
            time.sleep(0.01)
        pending = Answer("PENDING", None)
        return [answers.get(result.id, pending) for result in results]

    def run(self, task: str, *args: Any, within: float = ANSWER_WITHIN, **options: Any) -> Answer:
        """Send one task and wait for it."""
        return self.gather([self.send(task, *args, **options)], within=within)[0]

    def open_gate(self, name: str) -> None:
        """Let the task go on that waits in ``wait_at_gate(name)``."""
        (self.gates / name).touch()

    def revoke(self, result: AsyncResult[Any], with_signal: str = "SIGTERM") -> None:
        """``revoke(terminate=True)``: by the worker's remote control, as people do it."""
        self.client.control.revoke(result.id, terminate=True, signal=with_signal)

    # -- processes -----------------------------------------------------------------------------

    @property
    def popen(self) -> subprocess.Popen[bytes]:
        assert self._popen is not None, "start() it first"
        return self._popen

    @property
    def pid(self) -> int:
        return self.popen.pid

    def children(self) -> list[int]:
        """The pids of a prefork pool's children, those that end already not among them."""
        try:
            children = psutil.Process(self.pid).children()
        except psutil.NoSuchProcess:
            return []
        return [child.pid for child in children if lives(child)]

    def send_signal(self, number: int, pid: int | None = None) -> None:
        os.kill(self.pid if pid is None else pid, number)

    def wait(self, timeout: float = END_WITHIN) -> int:
        """Its exit status. What does not end in time is a failure."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end:\n{self.said()}") from None

    def stop(self, number: int = signal.SIGTERM, timeout: float = END_WITHIN) -> int:
        self.send_signal(number)
        return self.wait(timeout)

    def kill(self) -> None:
        """End it and its children, whatever state they are in. More than once does no harm."""
        if self._popen is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._popen.wait()
        close(self.client)

    def said(self) -> str:
        """What it wrote to stdout and stderr so far."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def tail(self, lines: int = 120) -> str:
        return "\n".join(self.said().splitlines()[-lines:])

    def wait_until(
        self, holds: Callable[[], bool], what: str = "what was waited for", timeout: float = 60.0
    ) -> None:
        deadline = time.monotonic() + timeout
        while not holds():
            assert time.monotonic() < deadline, f"{what} did not happen:\n{self.said()}"
            time.sleep(0.02)

    # -- PostgreSQL ----------------------------------------------------------------------------

    def _postgres_said(self) -> list[str]:
        assert self.pg.log_path is not None
        with self.pg.log_path.open("rb") as log:
            log.seek(self._seen)
            return log.read().decode(errors="replace").splitlines()

    def opened(self) -> Counter[str]:
        """How many connections were opened so far, by what follows `name` in application_name."""
        found = (_OPENED.search(line) for line in self._postgres_said())
        names = (match[1] for match in found if match is not None)
        return Counter(
            name.removeprefix(self.name).lstrip(".") for name in names if name.startswith(self.name)
        )

    def unclean(self) -> list[str]:
        """Connections whose client went without a word: killed, or never closed."""
        return [
            line
            for line in self._postgres_said()
            if _UNCLEAN.search(line) and f"] {self.name}" in line
        ]

    def idle(self, suffix: str = "") -> int:
        """How many connections it has now, of those with this *suffix* to its name."""
        return self.pg.count(prefix=f"{self.name}.{suffix}")

    def left(self, timeout: float = 40.0) -> int:
        """How many connections stay, once they are none or the time is over."""
        return self.pg.wait_count(0, prefix=self.name, timeout=timeout)


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # it has ended meanwhile
        return False


def client(broker: str, prefix: str) -> Celery:
    """An app that only sends: to the worker whose keys in redis have this prefix."""
    app = Celery(broker=broker, backend=broker, set_as_current=False, fixups=[])
    app.conf.update(settings(prefix))
    return app


@dataclass
class Workers:
    """Starts workers, and ends them. The log of each is shown if the test fails."""

    folder: Path
    pg: Postgres
    broker: str
    name: str
    started: list[CeleryWorker] = field(default_factory=list)

    def __call__(self, app: str, **options: Any) -> CeleryWorker:
        """Start ``tests.celery.apps.<app>``. For *options* see :class:`CeleryWorker`."""
        number = len(self.started) + 1
        worker = CeleryWorker(
            f"tests.celery.apps.{app}",
            self.folder / f"worker-{number}",
            self.pg,
            self.broker,
            f"{self.name}{number}",
            **options,
        )
        self.started.append(worker)
        return worker.start()

    def kill(self) -> None:
        for worker in self.started:
            worker.kill()

    def left(self) -> dict[str, int]:
        """Connections that outlived their worker."""
        return {worker.name: left for worker in self.started if (left := worker.left())}
