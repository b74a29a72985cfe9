"""Start an example: ``python examples/run.py fastapi_app``.

PostgreSQL is the one of LIFEGUARD_DSN. Without it one is started that lives as long as the
example does. Ctrl-C ends both, and leaves nothing behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lifeguard.testing import PostgresError, postgres

Port = Annotated[int, typer.Option(help="The port to listen on, at 127.0.0.1.")]
Workers = Annotated[int, typer.Option(help="How many worker processes.")]

MIGRATE = ("django", "migrate", "--verbosity=0")

cli = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True)


@cli.command("fastapi_app")
def fastapi_app(port: Port = 8000, workers: Workers = 4) -> None:
    """FastAPI on uvicorn: one async pool per worker process."""
    run("fastapi_app", "uvicorn", "app:app", f"--port={port}", f"--workers={workers}")


@cli.command("starlette_app")
def starlette_app(port: Port = 8000, workers: Workers = 1) -> None:
    """Starlette on uvicorn: streams, and a websocket with one unit per message."""
    run("starlette_app", "uvicorn", "app:app", f"--port={port}", f"--workers={workers}")


@cli.command("flask_app")
def flask_app(port: Port = 8000, workers: Workers = 2) -> None:
    """Flask on gunicorn with threads: one sync pool per worker process."""
    bind, number = f"--bind=127.0.0.1:{port}", f"--workers={workers}"
    run("flask_app", "gunicorn", "app:app", "--worker-class=gthread", "--threads=4", bind, number)


@cli.command("django_asgi")
def django_asgi(port: Port = 8000, workers: Workers = 1) -> None:
    """Django on uvicorn, with Channels: lanes instead of a connection per request and tab."""
    app = "board.asgi:application"
    server = ("uvicorn", app, f"--port={port}", f"--workers={workers}")
    run("django_asgi", *server, first=(*MIGRATE, "--settings=board.settings"))


@cli.command("django_wsgi")
def django_wsgi(port: Port = 8000, workers: Workers = 2) -> None:
    """Django on gunicorn with threads, and with threads of its own."""
    app, bind, number = "shop.wsgi:application", f"--bind=127.0.0.1:{port}", f"--workers={workers}"
    server = ("gunicorn", app, "--worker-class=gthread", "--threads=4", bind, number)
    run("django_wsgi", *server, first=(*MIGRATE, "--settings=shop.settings"))


@cli.command("celery_app")
def celery_app(
    orders: Annotated[int, typer.Option(help="How many orders come in.")] = 60,
    children: Annotated[int, typer.Option(help="How many processes the worker has.")] = 4,
    broker: Annotated[
        str | None, typer.Option(help="Its URL. Without one: a local Redis, or else a folder.")
    ] = None,
) -> None:
    """A Celery worker with sync and async tasks: one pool of each kind per child."""
    where = [] if broker is None else [f"--broker={broker}"]
    run("celery_app", "day", f"--orders={orders}", f"--children={children}", *where)


@cli.command("threads")
def charge(
    jobs: Annotated[int, typer.Option(help="How many orders to charge.")] = 200,
    threads: Annotated[int, typer.Option(help="How many threads.")] = 8,
) -> None:
    """A script with threads: each job is a unit."""
    run("threads", "charge", f"--jobs={jobs}", f"--threads={threads}")


def run(folder: str, *command: str, first: Sequence[str] = ()) -> None:
    """Run ``python -m *command`` in *folder*, after *first*, and end with its status."""
    stopped = False

    def stop(signum: int, frame: object) -> None:
        nonlocal stopped
        stopped = True
        process.terminate()

    try:
        with postgres() as pg:
            cwd, env = Path(__file__).parent / folder, {**os.environ, "LIFEGUARD_DSN": pg.dsn}
            if first:
                made = subprocess.run([sys.executable, "-m", *first], cwd=cwd, env=env, check=False)
                if made.returncode != 0:
                    raise SystemExit(made.returncode)
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=cwd,
                env=env,
                start_new_session=True,  # so that a Ctrl-C reaches it once, as a SIGTERM from us
            )
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(signum, stop)
            status = process.wait()
    except PostgresError as exc:
        raise SystemExit(str(exc)) from None
    raise SystemExit(0 if stopped else status)


if __name__ == "__main__":
    cli()
