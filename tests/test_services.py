"""``make services``: a redis for the examples, started once, reached from this machine only."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import services
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parent.parent


def test_a_second_start_finds_the_first_and_stop_ends_it(tmp_path: Path) -> None:
    """It says where it listens and how to end it; nothing is left of it, and nothing on disk."""
    port = free_port()
    try:
        end = f"make services-stop REDIS_PORT={port} ends it"
        where = f"redis: redis://127.0.0.1:{port}/0"
        assert services.start(port, tmp_path) == f"{where} (started; {end})"
        assert services.start(port, tmp_path) == f"{where} (runs already; {end})"
        server = psutil.Process(int((tmp_path / f"redis-{port}.pid").read_text()))
        listens = [each for each in server.net_connections() if each.status == psutil.CONN_LISTEN]
        assert [tuple(each.laddr) for each in listens] == [("127.0.0.1", port)]
    finally:
        said = services.stop(port, tmp_path)
    assert said == f"redis: stopped at port {port}"
    assert services.stop(port, tmp_path) == f"redis: none was started here at port {port}"
    assert [path.suffix for path in tmp_path.iterdir()] == [".log"]


def test_somebody_elses_redis_is_used_and_not_stopped(tmp_path: Path) -> None:
    """Its process is not ours to end."""
    port = free_port()
    theirs = tmp_path / "theirs"
    services.start(port, theirs)
    try:
        ours = tmp_path / "ours"
        assert "started by somebody else" in services.start(port, ours)
        assert "none was started here" in services.stop(port, ours)
        assert "runs already" in services.start(port, theirs)
    finally:
        services.stop(port, theirs)


def test_a_port_that_is_taken_says_which_to_try(tmp_path: Path) -> None:
    """Whoever listens there is no redis: that is an error, with the next step in it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(50)
        port = server.getsockname()[1]
        env = {**os.environ, "REDIS_PORT": str(port)}
        command = [sys.executable, "-m", "tests.support.services", "start"]
        asked = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=-1, stderr=-1, text=True, stdin=subprocess.DEVNULL
        )
        client, _ = server.accept()
        with client:
            client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            out, err = asked.communicate(timeout=20)
    assert asked.returncode == 1
    assert out == ""
    assert err == f"port {port} is taken, and not by a redis: make services REDIS_PORT={port + 1}\n"


def test_without_redis_and_apt_it_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A machine of another kind gets a sentence, not a traceback."""
    which = shutil.which
    gone = {"redis-server", "apt-get"}
    monkeypatch.setattr(shutil, "which", lambda name: None if name in gone else which(name))
    with pytest.raises(services.ServicesError, match="no redis-server on PATH: install one"):
        services.start(free_port(), tmp_path)
