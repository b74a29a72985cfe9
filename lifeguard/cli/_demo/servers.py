"""One real server process per side, gone when its block is left.

It listens on a unix socket, or takes its work out of a folder and says in its log when it is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from .reaper import Reaper

APPS = Path(__file__).parent / "apps"
START_WITHIN = 20.0
STOP_WITHIN = 12.0  # Celery on a folder takes seven


class ServerError(Exception):
    """A server of the demo did not start; the message carries the end of its log."""


class Server:
    """A server and its workers: one process group, so that nobody is left behind."""

    def __init__(
        self, argv: Sequence[str], reaper: Reaper, *, dsn: str, guarded: bool, uds: Path
    ) -> None:
        self.uds = uds
        self._reaper = reaper
        self.log = uds.with_suffix(".log")
        self.folder = uds.with_suffix("")
        env = {**os.environ, "DSN": dsn, "FOLDER": str(self.folder), "PYTHONUNBUFFERED": "1"}
        env.pop("GUARDED", None)
        if guarded:
            env["GUARDED"] = "1"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *(arg.format(uds=uds) for arg in argv)],
                cwd=APPS,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        reaper.watch(self._process.pid)

    def signal(self, number: signal.Signals) -> None:
        """To the master process, as a process manager or a deploy script would send it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    @property
    def exited(self) -> bool:
        return self._process.poll() is not None

    def tail(self, lines: int = 12) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.rstrip().splitlines()[-lines:])

    async def wait_until_ready(self, word: str) -> None:
        """Until it listens; or, where there is a *word* for it, until that is in its log."""
        deadline = time.monotonic() + START_WITHIN
        while time.monotonic() < deadline:
            if self.exited:
                raise ServerError(f"the server ended at start:\n{self.tail()}")
            if word:
                if word in self.log.read_text(errors="replace"):
                    return
            else:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_unix_connection(str(self.uds))
                    writer.close()
                    return
            await asyncio.sleep(0.05)
        verb = "was not ready" if word else "did not listen"
        raise ServerError(f"the server {verb} within {START_WITHIN:.0f} s:\n{self.tail()}")

    async def stop(self) -> None:
        """SIGTERM to the master, as in production; then whatever is left of the group is killed."""
        self.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_WITHIN
        while not self.exited and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        self.kill()

    def kill(self) -> None:
        """Everything in the group, at once. Safe to call at any time, any number of times."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reaper.forget(self._process.pid)


@contextlib.asynccontextmanager
async def serving(
    argv: Sequence[str], reaper: Reaper, *, dsn: str, guarded: bool, uds: Path
) -> AsyncIterator[Server]:
    server = Server(argv, reaper, dsn=dsn, guarded=guarded, uds=uds)
    try:
        yield server
    finally:
        server.kill()
