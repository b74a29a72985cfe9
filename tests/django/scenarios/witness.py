"""What the project says about itself, in the event log, and what it waits for."""

from __future__ import annotations

import asyncio
import os
import time
from contextvars import ContextVar
from pathlib import Path

from tests.support.eventlog import EventLog

log = EventLog.from_env()
current: ContextVar[str] = ContextVar("current", default="")
"""The id of the request whose code runs."""

_gates = Path(os.environ["APP_GATES"])
_GIVE_UP = 20.0


def note(event: str) -> None:
    log.write(event, id=current.get())


def started(**kwargs: object) -> None:
    note("started")


def finished(**kwargs: object) -> None:
    note("finished")


def wait_at_gate() -> None:
    """Block until the test opens the gate of this request."""
    gate, deadline = _gates / current.get(), time.monotonic() + _GIVE_UP
    while not gate.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


async def await_gate() -> None:
    gate, deadline = _gates / current.get(), time.monotonic() + _GIVE_UP
    while not gate.exists() and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
