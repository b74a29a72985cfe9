"""examples/run.py: a PostgreSQL of its own, and nothing left after Ctrl-C."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.examples.server import ROOT, running
from tests.support.ports import free_port

NAMES = (
    "celery_app",
    "django_asgi",
    "django_wsgi",
    "fastapi_app",
    "flask_app",
    "starlette_app",
    "threads",
)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_nothing_is_left_behind(tmp_path: Path, signum: int) -> None:
    port, log = free_port(), tmp_path / "output"
    command = ("examples/run.py", "starlette_app", f"--port={port}")
    with running(*command, port=port, log=log, LIFEGUARD_DSN=None) as server:
        family = psutil.Process(server.process.pid).children(recursive=True)
        lines = [line_of(process) for process in family]
        assert any("bin/postgres" in line for line in lines), lines
        assert any("uvicorn" in line for line in lines), lines
        assert server.http.post("/vote/tea").json() == {"tea": 1}
        assert server.stop(signum) == 0
    _, alive = psutil.wait_procs(family, timeout=40)
    assert alive == []


def line_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # one of PostgreSQL's, which has ended meanwhile
        return ""


def test_every_example_is_listed_and_explains_itself() -> None:
    folders = {path.parent.name for path in (ROOT / "examples").glob("*/README.md")}
    assert folders == set(NAMES)
    listing = help_of()
    for name in NAMES:
        assert name in listing
        assert "--" in help_of(name)
        assert (
            f"python examples/run.py {name}" in (ROOT / "examples" / name / "README.md").read_text()
        )


def help_of(*words: str) -> str:
    command = [sys.executable, "examples/run.py", *words, "--help"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return re.sub(r"\x1b\[[0-9;]*m", "", said.stdout)
