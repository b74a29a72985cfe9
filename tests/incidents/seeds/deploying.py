"""A deployment of several processes, started as its users start it, and the load it had.

The neighbours of this directory replay one failure of one process. Here it takes what people run:
a database of its own, servers with workers, and many clients at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from lifeguard.testing import Postgres
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[3]


# -- the database ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Database:
    """A database that nobody else connects to, so that every connection to it is the app's."""

    pg: Postgres
    name: str
    dsn: str
    """How the app connects: as a role of its own, which has no reserved slots to fall back on."""

    def count(self, *, without: str | None = None) -> int:
        """Connections of the app now, without those with this application_name."""
        with self.pg.connect() as connection:
            return count(connection, self.name, without)

    def wait_at_most(self, n: int, *, timeout: float = 40.0, without: str | None = None) -> int:
        """Wait until the app has at most *n* connections; the last count either way."""
        deadline = time.monotonic() + timeout
        while (count := self.count(without=without)) > n and time.monotonic() < deadline:
            time.sleep(0.05)
        return count

    @contextlib.contextmanager
    def watched(self, *, without: str | None = None) -> Iterator[Peak]:
        """The highest number of connections during the block."""
        peak = Peak(self, without)
        try:
            yield peak
        finally:
            peak.stop()


def count(connection: psycopg.Connection[Any], name: str, without: str | None) -> int:
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        " AND application_name IS DISTINCT FROM %s AND backend_type = 'client backend'"
    )
    row = connection.execute(query, [name, without]).fetchone()
    assert row is not None
    return int(row[0])


class Peak:
    """Looks at the database every 20 ms, through a connection of its own."""

    def __init__(self, database: Database, without: str | None) -> None:
        self.connections = 0
        self._database = database
        self._without = without
        self._stopped = threading.Event()
        self._connection = database.pg.connect()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(0.02):
            now = count(self._connection, self._database.name, self._without)
            self.connections = max(self.connections, now)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._connection.close()


@contextlib.contextmanager
def database(pg: Postgres, name: str, *, limit: int = -1) -> Iterator[Database]:
    """A new database and its owner, for the block. It takes *limit* connections, -1 is no limit."""
    name = f"{name}_{secrets.token_hex(4)}"
    password = secrets.token_urlsafe(12)
    quoted = sql.Identifier(name)
    with pg.connect() as connection:
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(quoted, sql.Literal(password))
        )
        connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER {} CONNECTION LIMIT {}").format(
                quoted, quoted, sql.Literal(limit)
            )
        )
    dsn = make_conninfo(pg.dsn, dbname=name, user=name, password=password)
    try:
        yield Database(pg, name, dsn)
    finally:
        with pg.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(quoted))
            connection.execute(sql.SQL("DROP ROLE {}").format(quoted))


@contextlib.contextmanager
def copied(db: Database) -> Iterator[Database]:
    """The same database once more, without a limit, for the block."""
    name = f"{db.name}_{secrets.token_hex(2)}"
    quoted = sql.Identifier(name)
    with db.pg.connect() as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {} CONNECTION LIMIT -1").format(
                quoted, sql.Identifier(db.name), sql.Identifier(db.name)
            )
        )
    try:
        yield Database(db.pg, name, make_conninfo(db.dsn, dbname=name))
    finally:
        with db.pg.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(quoted))


# -- the processes -----------------------------------------------------------------------------


@dataclass
class Process:
    """One command, ``python -m <argv>``, in a process group of its own."""

    argv: list[str]
    env: dict[str, str]
    output: Path
    port: int
    popen: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        with self.output.open("ab") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", *self.argv],
                cwd=ROOT,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def said(self) -> str:
        """The end of what it wrote."""
        return self.output.read_text(errors="replace")[-6000:]

    def has_said(self, words: str) -> bool:
        return words in self.output.read_text(errors="replace")

    def wait_until(self, ready: Callable[[], object], timeout: float = 90.0) -> None:
        deadline = time.monotonic() + timeout
        while not ready():
            if self.popen.poll() is not None:
                raise AssertionError(f"it ended with {self.popen.returncode}:\n{self.said()}")
            assert time.monotonic() < deadline, f"it does not get ready:\n{self.said()}"
            time.sleep(0.05)

    def listens(self) -> bool:
        with socket.socket() as client:
            client.settimeout(1)
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.popen.pid).children()

    def ends_within(self, timeout: float) -> bool:
        """Whether SIGTERM ends it, and its workers, in this time."""
        self.popen.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(timeout)
            return True
        return False

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


@dataclass
class Deployment:
    """One side of a seed: its settings, and the processes that run with them."""

    settings: str
    database: Database
    directory: Path
    guarded: bool
    overlays: tuple[Path, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    running: list[Process] = field(default_factory=list)

    def environ(self, **more: str) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, [*self.overlays, ROOT])),
            "PYTHONUNBUFFERED": "1",
            "DJANGO_SETTINGS_MODULE": self.settings,
            "SEED_DSN": self.database.dsn,
            "SEED_SIDE": "guarded" if self.guarded else "bare",
            **self.env,
            **more,
        }

    def start(self, command: str, **env: str) -> Process:
        """A process; ``{port}`` in *command* is a free one."""
        port = free_port()
        side = "guarded" if self.guarded else "bare"
        argv = command.format(port=port).split()
        output = self.directory / f"{side}-{argv[0]}-{len(self.running)}.txt"
        process = Process(argv, self.environ(**env), output, port)
        self.running.append(process)
        return process

    def serve(self, command: str, *, workers: int = 0, **env: str) -> Process:
        """A server that listens, with its workers up."""
        process = self.start(command, **env)
        process.wait_until(process.listens)
        process.wait_until(lambda: len(process.workers()) >= workers)
        return process

    def manage(self, command: str) -> None:
        """A management command, to its end."""
        made = subprocess.run(
            [sys.executable, "-m", "django", *command.split()],
            cwd=ROOT,
            env=self.environ(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert made.returncode == 0, made.stdout + made.stderr

    def end(self) -> None:
        for process in self.running:
            process.kill()


@contextlib.contextmanager
def deployed(
    settings: str,
    database: Database,
    directory: Path,
    guarded: bool,
    overlays: tuple[Path, ...] = (),
    **env: str,
) -> Iterator[Deployment]:
    deployment = Deployment(settings, database, directory, guarded, overlays, env)
    try:
        yield deployment
    finally:
        deployment.end()


# -- the clients -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    status: int
    """0 where there was no answer; then the body says why."""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Client:
    """One HTTP/1.1 connection, kept alive where the server does so.

    It is a light one: it shares the machine with the servers that it keeps busy.
    """

    def __init__(self, port: int, timeout: float = 90.0) -> None:
        self.port = port
        self.timeout = timeout
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def get(self, path: str) -> Answer:
        try:
            async with asyncio.timeout(self.timeout):
                return await self._get(path)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as exc:
            await self.close()
            return Answer(0, body=repr(exc).encode())

    async def send(self, path: str) -> asyncio.StreamReader:
        """Only ask: a request, and where its answer will be."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._streams
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return reader

    async def leave(self, path: str) -> None:
        """Ask, and be gone before the answer can be there."""
        with contextlib.suppress(OSError):
            await self.send(path)
            await asyncio.sleep(0)
        await self.close()

    async def _get(self, path: str) -> Answer:
        reader = await self.send(path)
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").rstrip().split("\r\n")
        pairs = [line.split(":", 1) for line in lines]
        headers = {name.strip().lower(): value.strip() for name, value in pairs}
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = b"".join([chunk async for chunk in _chunks(reader)])
        elif "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        else:
            body = await reader.read()
            headers["connection"] = "close"
        if headers.get("connection", "").lower() == "close":
            await self.close()
        return Answer(int(first.split()[1]), headers, body)

    async def close(self) -> None:
        if self._streams is not None:
            writer = self._streams[1]
            self._streams = None
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)


Job = Callable[[Client], Awaitable[Answer]]


async def at_a_time(n: int, jobs: list[Job], port: int) -> list[Answer]:
    """Have *n* clients share *jobs*; the answers."""
    queue = list(reversed(jobs))
    answers: list[Answer] = []

    async def client() -> None:
        async with Client(port) as one:
            while queue:
                answers.append(await queue.pop()(one))

    await asyncio.gather(*(client() for _ in range(n)))
    return answers


def asking(path: str) -> Job:
    return lambda client: client.get(path)


def failed(answers: list[Answer]) -> int:
    return failures(answers).total()


def failures(answers: list[Answer]) -> Counter[str]:
    """What was answered instead of a 200."""
    bad = [answer for answer in answers if answer.status != 200]
    return Counter(f"{answer.status}: {answer.body[:200]!r}" for answer in bad)
