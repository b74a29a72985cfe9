"""The rows of the matrix: every server lifeguard supports, and how it is started.

Paths of apps are those of this repository's root, where the servers run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version

ASGI_APP = "tests.servers.apps.asgi_app:app"
WSGI_APP = "tests.servers.apps.wsgi_app:app"

STREAM = 20
"""Chunks of a stream."""
FLOOD = 64
"""Chunks of 64 KiB after the gate: more than any buffer between server and client takes."""


@dataclass(frozen=True)
class Row:
    name: str
    package: str
    arguments: tuple[str, ...]
    """After ``python -m <package>``; ``{port}`` and ``{app}`` are filled in."""
    app: str
    workers: int = 1
    lifespan: bool = True
    """Whether the server speaks lifespan: if not, the first request opens the worker."""
    bare_sigterm: str | None = None
    """Why an ``atexit`` handler does not run here after a SIGTERM, where it does not."""
    env: dict[str, str] = field(default_factory=dict)

    @property
    def version(self) -> str:
        return version(self.package)


def _asgi(name: str, package: str, arguments: str, **kwargs: object) -> Row:
    return Row(name, package, tuple(arguments.split()), ASGI_APP, **kwargs)  # type: ignore[arg-type]


def _wsgi(name: str, package: str, arguments: str, **kwargs: object) -> Row:
    return Row(
        name,
        package,
        tuple(arguments.split()),
        WSGI_APP,
        lifespan=False,
        **kwargs,  # type: ignore[arg-type]
    )


_UVICORN = "{app} --host 127.0.0.1 --port {port}"
_GUNICORN = "{app} --bind 127.0.0.1:{port} --graceful-timeout 5"
_HYPERCORN = "{app} --bind 127.0.0.1:{port}"
_GRANIAN = "{app} --host 127.0.0.1 --port {port} --workers-kill-timeout 5"

_DIES_BY_SIGNAL = "uvicorn raises the signal again, with its default action, after the shutdown"

ROWS = (
    _asgi("uvicorn", "uvicorn", _UVICORN, bare_sigterm=_DIES_BY_SIGNAL),
    _asgi(
        "uvicorn, 2 workers",
        "uvicorn",
        f"{_UVICORN} --workers 2",
        workers=2,
        bare_sigterm=_DIES_BY_SIGNAL,
    ),
    _asgi(
        "gunicorn uvicorn-worker",
        "gunicorn",
        f"{_GUNICORN} -k uvicorn_worker.UvicornWorker",
        bare_sigterm=_DIES_BY_SIGNAL,
    ),
    _asgi("gunicorn asgi", "gunicorn", f"{_GUNICORN} -k asgi"),
    _asgi("hypercorn asyncio", "hypercorn", f"{_HYPERCORN} -k asyncio"),
    _asgi("hypercorn trio", "hypercorn", f"{_HYPERCORN} -k trio", env={"APP_POOL": "sync"}),
    _asgi("daphne", "daphne", "-b 127.0.0.1 -p {port} {app}", lifespan=False),
    _asgi("granian asgi", "granian", f"{_GRANIAN} --interface asgi"),
    _asgi("granian asginl", "granian", f"{_GRANIAN} --interface asginl", lifespan=False),
    _wsgi("gunicorn sync", "gunicorn", f"{_GUNICORN} -k sync"),
    _wsgi("gunicorn gthread", "gunicorn", f"{_GUNICORN} -k gthread --threads 4"),
    _wsgi("granian wsgi", "granian", f"{_GRANIAN} --interface wsgi"),
    _wsgi(
        "waitress",
        "waitress",
        "--listen=127.0.0.1:{port} {app}",
        bare_sigterm="waitress leaves SIGTERM to its default action",
    ),
)
