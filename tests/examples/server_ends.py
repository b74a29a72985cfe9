"""What becomes of a worker's resources when a server is ended in ways the matrix leaves out.

``python -m tests.examples.server_ends`` prints the table of docs/servers.md, in about two minutes.
It observes and promises nothing: in some of these endings no library can run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from tests.examples.server import ROOT, free_port
from tests.servers.rows import ROWS, WSGI_APP, Row
from tests.support.eventlog import ENV, EventLog

ENDINGS = ("SIGINT", "SIGTERM, busy", "SIGTERM to worker", "SIGKILL of master")
ALONE = ("uvicorn", "daphne", "waitress")  # one process: there is no master
LIMITS = ("--graceful-timeout", "--workers-kill-timeout")
WAIT = 10.0  # seconds for what may never happen


def end(row: Row, ending: str, directory: Path) -> str:
    """Start the server, end it so, and say what became of its workers."""
    log = EventLog(directory / f"{row.name}.{ending}".replace(" ", "-"))
    port = free_port()
    app = f"tests.examples.ends_apps:{'wsgi_app' if row.app == WSGI_APP else 'app'}"
    words = [word.format(port=port, app=app) for word in row.arguments]
    if ending == "SIGTERM, busy":
        words = [word if words[i - 1] not in LIMITS else "1" for i, word in enumerate(words)]
        words += ["--timeout-graceful-shutdown=1"] if row.package == "uvicorn" else []
    server = subprocess.Popen(
        [sys.executable, "-m", row.package, *words],
        cwd=ROOT,
        env={**os.environ, **row.env, ENV: str(log.path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return _end(server, row, ending, log, f"http://127.0.0.1:{port}")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # and the workers that a master has made since
        server.wait()
        log.close()


def _end(server: subprocess.Popen[bytes], row: Row, ending: str, log: EventLog, url: str) -> str:
    deadline = time.monotonic() + 20
    while not log.per_pid("open") or len(log.per_pid("open")) < row.workers:
        try:
            httpx.get(url)
        except httpx.TransportError:
            time.sleep(0.05)
        if time.monotonic() > deadline:
            return "did not start"
    answers: list[str] = []
    if ending == "SIGTERM, busy":

        def ask() -> None:
            try:
                answers.append(str(httpx.get(f"{url}/slow", timeout=20).status_code))
            except httpx.HTTPError:
                answers.append("dropped")

        before = log.count("begin")
        client = threading.Thread(target=ask)
        client.start()
        log.wait_count("begin", before + 1)
    workers = set(log.per_pid("open"))
    started = time.monotonic()
    if ending == "SIGTERM to worker":
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
    else:
        numbers = {"SIGINT": signal.SIGINT, "SIGKILL of master": signal.SIGKILL}
        server.send_signal(numbers.get(ending, signal.SIGTERM))
    while living(workers) and time.monotonic() < started + WAIT:
        time.sleep(0.05)
    seconds = time.monotonic() - started
    if ending == "SIGTERM, busy":
        client.join()
    opens, closes = log.per_pid("open"), log.per_pid("close")
    if all(opens[pid] == closes[pid] == 1 for pid in workers):  # a master may have made others
        fate = f"closed ({seconds:.1f} s)"
    elif living(workers):
        fate = f"lives on ({seconds:.0f} s)"
    else:
        fate = f"NOT CLOSED ({seconds:.1f} s)"
    units = log.count("begin") - log.count("end")
    return ", ".join([fate, *answers, *([f"{units} units did not end"] if units else [])])


def living(pids: set[int]) -> set[int]:
    found = set()
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.add(pid)
        except psutil.NoSuchProcess:
            pass
    return found


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored SIGINTs are inherited
    with tempfile.TemporaryDirectory() as directory:
        for row in ROWS:
            for ending in ENDINGS:
                if row.name in ALONE and ending.split()[-1] in ("worker", "master"):
                    continue
                print(f"{row.name:24} {ending:18} {end(row, ending, Path(directory))}", flush=True)


if __name__ == "__main__":
    main()
