"""Every server lifeguard supports, and how it is started.

``ROWS`` are those of ``make servers`` (every way a request ends), ``ENDS`` those of ``make matrix``
(every way a worker ends). Paths of apps are those of this repository's root, where the servers
run.
"""

from __future__ import annotations

import os
import shlex
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

ASGI_APP = "tests.servers.apps.asgi_app:app"
WSGI_APP = "tests.servers.apps.wsgi_app:app"

STREAM = 20
"""Chunks of a stream."""
FLOOD = 64
"""Chunks of 64 KiB after the gate: more than any buffer between server and client takes."""


@dataclass(frozen=True)
class Limits:
    """The options with which a server ends its workers. Without one it has no such limit.

    ``{}`` is where the number goes: of seconds, or of requests.
    """

    graceful: str = ""
    """How long requests in flight may take at the end."""
    recycle: str = ""
    """After how many requests a worker is replaced."""
    timeout: str = ""
    """How long one request may take."""
    reload: bool = False
    """Whether SIGHUP replaces the workers."""


@dataclass(frozen=True)
class Row:
    name: str
    package: str
    arguments: tuple[str, ...]
    """After ``python -m <package>``; ``{port}`` and ``{app}`` are filled in."""
    app: str
    limits: Limits = Limits()
    workers: int = 1
    master: bool = True
    """Whether the process that is started only minds the workers."""
    lifespan: bool = True
    """Whether the server speaks lifespan: if not, the first request opens the worker."""
    bare_sigterm: str | None = None
    """Why an ``atexit`` handler does not run here after a SIGTERM, where it does not."""
    patience: float = 0.0
    """Seconds that the server gives its threads to end, whatever its limits, if it may unwind."""
    env: dict[str, str] = field(default_factory=dict)
    run: tuple[str, ...] = ()
    """What to give to ``python`` instead of ``-m <package>``."""

    @property
    def version(self) -> str:
        return version(self.package)

    def command(self, port: int, *, graceful: float, more: str = "") -> list[str]:
        """What to give to ``python``; requests in flight have *graceful* seconds to end."""
        words = [word.format(port=port, app=self.app) for word in self.arguments]
        limit = self.limits.graceful.format(graceful)
        return [*(self.run or ("-m", self.package)), *words, *limit.split(), *more.split()]


def _row(name: str, package: str, arguments: str, app: str, **kwargs: object) -> Row:
    return Row(name, package, tuple(shlex.split(arguments)), app, LIMITS[package], **kwargs)  # type: ignore[arg-type]


def _asgi(name: str, package: str, arguments: str, **kwargs: object) -> Row:
    return _row(name, package, arguments, ASGI_APP, **kwargs)


def _wsgi(name: str, package: str, arguments: str, **kwargs: object) -> Row:
    return _row(name, package, arguments, WSGI_APP, lifespan=False, **kwargs)


def _with(row: Row, name: str, arguments: str, **kwargs: object) -> Row:
    return replace(row, name=name, arguments=(*row.arguments, *arguments.split()), **kwargs)  # type: ignore[arg-type]


LIMITS = {
    "uvicorn": Limits(graceful="--timeout-graceful-shutdown {}", recycle="--limit-max-requests {}"),
    "gunicorn": Limits(
        graceful="--graceful-timeout {}",
        recycle="--max-requests {}",
        timeout="--timeout {}",
        reload=True,
    ),
    "hypercorn": Limits(graceful="--graceful-timeout {}", recycle="--max-requests {}", reload=True),
    "daphne": Limits(),
    "granian": Limits(graceful="--workers-kill-timeout {}", reload=True),
    "waitress": Limits(),
    "pyuwsgi": Limits(
        graceful="--worker-reload-mercy {}",
        recycle="--max-requests {}",
        timeout="--harakiri {}",
        reload=True,
    ),
}

_UVICORN = "{app} --host 127.0.0.1 --port {port}"
_GUNICORN = "{app} --bind 127.0.0.1:{port} --no-control-socket"
_HYPERCORN = "{app} --bind 127.0.0.1:{port}"
_GRANIAN = "{app} --host 127.0.0.1 --port {port}"
_UWSGI = (
    "--http-socket 127.0.0.1:{port} --wsgi {app} --master --processes 2 --threads 2"
    " --enable-threads --need-app"
)

_DIES_BY_SIGNAL = "uvicorn raises the signal again, with its default action, after the shutdown"

_uvicorn = _asgi("uvicorn", "uvicorn", _UVICORN, master=False, bare_sigterm=_DIES_BY_SIGNAL)
_uvicorn_2 = replace(
    _with(_uvicorn, "uvicorn, 2 workers", "--workers 2"),
    workers=2,
    master=True,
    limits=replace(_uvicorn.limits, reload=True),
)
_gunicorn_uvicorn = _asgi(
    "gunicorn uvicorn-worker",
    "gunicorn",
    f"{_GUNICORN} -k uvicorn_worker.UvicornWorker",
    bare_sigterm=_DIES_BY_SIGNAL,
)
_gunicorn_asgi = _asgi("gunicorn asgi", "gunicorn", f"{_GUNICORN} -k asgi")
_gunicorn_sync = _wsgi("gunicorn sync", "gunicorn", f"{_GUNICORN} -k sync")
_gunicorn_gthread = _wsgi("gunicorn gthread", "gunicorn", f"{_GUNICORN} -k gthread --threads 4")
_hypercorn = _asgi("hypercorn asyncio", "hypercorn", f"{_HYPERCORN} -k asyncio")
_hypercorn_trio = _asgi(
    "hypercorn trio", "hypercorn", f"{_HYPERCORN} -k trio", env={"APP_POOL": "sync"}
)
_daphne = _asgi("daphne", "daphne", "-b 127.0.0.1 -p {port} {app}", lifespan=False, master=False)
_granian_asgi = _asgi("granian asgi", "granian", f"{_GRANIAN} --interface asgi")
_granian_asginl = _asgi(
    "granian asginl", "granian", f"{_GRANIAN} --interface asginl", lifespan=False
)
_granian_wsgi = _wsgi("granian wsgi", "granian", f"{_GRANIAN} --interface wsgi")
_waitress = _wsgi(
    "waitress",
    "waitress",
    "--listen=127.0.0.1:{port} {app}",
    master=False,
    patience=5.0,
    bare_sigterm="waitress leaves SIGTERM to its default action",
)
_uwsgi = _wsgi(
    "uwsgi",
    "pyuwsgi",
    f"{_UWSGI} --hook-master-start 'unix_signal:15 gracefully_kill_them_all'",
    workers=2,
    run=("-c", "import pyuwsgi; pyuwsgi.run()"),
    # It reloads by starting the interpreter anew, by its real path: outside of the environment.
    env={"PYTHONPATH": os.pathsep.join((str(ROOT), sysconfig.get_path("purelib")))},
)

ROWS = (
    _uvicorn,
    _uvicorn_2,
    _gunicorn_uvicorn,
    _gunicorn_asgi,
    _hypercorn,
    _hypercorn_trio,
    _daphne,
    _granian_asgi,
    _granian_asginl,
    _gunicorn_sync,
    _gunicorn_gthread,
    _granian_wsgi,
    _waitress,
)


def _gunicorn_rows() -> Iterator[Row]:
    for row in (_gunicorn_sync, _gunicorn_gthread, _gunicorn_uvicorn, _gunicorn_asgi):
        hooks = "-c python:lifeguard.gunicorn"
        yield _with(row, row.name, hooks)
        yield _with(row, f"{row.name} --preload", f"{hooks} --preload")
        yield _with(row, f"{row.name}, no hooks", "")


def _one_and_two(row: Row, arguments: str = "", name: str = "") -> Iterator[Row]:
    row = _with(row, f"{row.name}{name}", arguments)
    yield row
    yield replace(_with(row, f"{row.name}, 2 workers", "--workers 2"), workers=2)


ENDS = (
    _uvicorn,
    _uvicorn_2,
    *_gunicorn_rows(),
    *_one_and_two(_hypercorn),
    *_one_and_two(_hypercorn_trio),
    _daphne,
    *_one_and_two(_granian_asgi, "--runtime-mode st", " st"),
    *_one_and_two(_granian_asgi, "--runtime-mode mt", " mt"),
    *_one_and_two(_granian_asginl),
    *_one_and_two(_granian_wsgi),
    _waitress,
    _uwsgi,
    _with(_uwsgi, "uwsgi --lazy-apps", "--lazy-apps"),
    replace(
        _with(_uwsgi, "uwsgi --die-on-term", ""),
        arguments=(*shlex.split(_UWSGI), "--die-on-term"),
        limits=replace(_uwsgi.limits, graceful=""),
    ),
)
