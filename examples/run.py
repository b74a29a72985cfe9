"""Start an example: ``python examples/run.py fastapi_app``.

PostgreSQL is the one of LIFEGUARD_DSN. Without it one is started that lives as long as the
example does. Ctrl-C ends both, and leaves nothing behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from lifeguard.testing import PostgresError, postgres

Port = Annotated[int, typer.Option(help="The port to listen on, at 127.0.0.1.")]
Workers = Annotated[int, typer.Option(help="How many worker processes.")]

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


@cli.command("threads")
def charge(
    jobs: Annotated[int, typer.Option(help="How many orders to charge.")] = 200,
    threads: Annotated[int, typer.Option(help="How many threads.")] = 8,
) -> None:
    """A script with threads: each job is a unit."""
    run("threads", "charge", f"--jobs={jobs}", f"--threads={threads}")


def run(folder: str, *command: str) -> None:
    """Run ``python -m *command`` in *folder*, and end with its status."""
    stopped = False

    def stop(signum: int, frame: object) -> None:
        nonlocal stopped
        stopped = True
        process.terminate()

    try:
        with postgres() as pg:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=Path(__file__).parent / folder,
                env={**os.environ, "LIFEGUARD_DSN": pg.dsn},
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
