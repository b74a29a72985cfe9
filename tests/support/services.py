"""What the examples want beside PostgreSQL, started by hand: ``make services``, a redis.

Tests start a redis of their own (see ``redis.py``). This one is for people: it stays until
``make services-stop``, keeps nothing on disk, and nobody but this machine can reach it. One that
runs already is used as it is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
PORT = 6379
START_WITHIN = 15.0
STOP_WITHIN = 15.0


class ServicesError(RuntimeError):
    """It cannot be had on this machine. The message says why, and what to do."""


def start(port: int, folder: Path) -> str:
    """Have a redis at *port*. Returns a sentence that says where, and how to stop it."""
    url = f"redis://{HOST}:{port}/0"
    answer = _ping(port)
    if answer == "redis":
        if _pid(folder, port):
            return f"redis: {url} (runs already; {_end(port)} ends it)"
        return f"redis: {url} (runs already, started by somebody else)"
    if answer:
        raise ServicesError(
            f"port {port} is taken, and not by a redis: make services REDIS_PORT={port + 1}"
        )
    command = shutil.which("redis-server")
    if command is None:
        command = _install()
        if _ping(port) == "redis":  # the package has started one all the same
            return f"redis: {url} (runs already, started by its package)"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"redis-{port}.log"
    options = {
        "bind": HOST,
        "port": str(port),
        "save": "",
        "appendonly": "no",
        "dir": str(folder),
        "daemonize": "yes",
        "pidfile": str(_pidfile(folder, port)),
        "logfile": str(log),
    }
    argv = [command, *(word for key, value in options.items() for word in (f"--{key}", value))]
    subprocess.run(argv, stdin=subprocess.DEVNULL, check=True)
    deadline = time.monotonic() + START_WITHIN
    while _ping(port) != "redis" or not _pid(folder, port):
        if time.monotonic() > deadline:
            raise ServicesError(f"redis-server did not start; it says why in {log}")
        time.sleep(0.02)
    return f"redis: {url} (started; {_end(port)} ends it)"


def stop(port: int, folder: Path) -> str:
    """End the redis that :func:`start` has started, and no other. Returns what was done."""
    pid = _pid(folder, port)
    if not pid:
        return f"redis: none was started here at port {port}"
    os.kill(pid, 15)
    deadline = time.monotonic() + STOP_WITHIN
    while _pid(folder, port):
        if time.monotonic() > deadline:
            raise ServicesError(f"redis-server, process {pid}, does not end")
        time.sleep(0.02)
    _pidfile(folder, port).unlink(missing_ok=True)
    return f"redis: stopped at port {port}"


def _end(port: int) -> str:
    return "make services-stop" + (f" REDIS_PORT={port}" if port != PORT else "")


def _ping(port: int) -> str:
    """Who listens: "redis", "somebody", or "" for nobody."""
    try:
        with socket.create_connection((HOST, port), timeout=2) as client:
            with contextlib.suppress(OSError):
                client.sendall(b"PING\r\n")
                if client.recv(100).startswith((b"+PONG", b"-NOAUTH", b"-LOADING")):
                    return "redis"
    except OSError:
        return ""
    return "somebody"


def _pidfile(folder: Path, port: int) -> Path:
    return folder / f"redis-{port}.pid"


def _pid(folder: Path, port: int) -> int:
    """The process that the file tells of, if that is a redis still. 0 for none."""
    try:
        process = psutil.Process(int(_pidfile(folder, port).read_text()))
        runs = "redis" in process.name() and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, psutil.Error):
        return 0
    return process.pid if runs else 0


def _install() -> str:
    if shutil.which("apt-get") is None:
        raise ServicesError(
            "there is no redis-server on PATH: install one with this machine's package manager "
            "(macOS: brew install redis), then make services again"
        )
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    # Started from here, for this project only: the package is to start none of its own.
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1"]
    for words in (["update"], ["install", "-y", "--no-install-recommends", "redis-server"]):
        made = subprocess.run(
            [*sudo, *quiet, "apt-get", "-q", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode and words[0] == "install":
            raise ServicesError(
                "there is no redis-server, and apt-get could not install one. As an administrator: "
                f"apt-get install redis-server\n{made.stderr.strip()}"
            )
    return shutil.which("redis-server") or "/usr/bin/redis-server"


def main(argv: list[str]) -> int:
    if argv not in (["start"], ["stop"]):
        print("usage: python -m tests.support.services start|stop", file=sys.stderr)
        return 2
    try:
        port = int(os.environ.get("REDIS_PORT") or PORT)
        folder = ROOT / ".lifeguard" / "services"
        print({"start": start, "stop": stop}[argv[0]](port, folder))
    except ServicesError as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
