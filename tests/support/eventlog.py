"""The witness: what happened, in which process and thread, written where a SIGKILL cannot lose it.

Each event is one line of JSON, appended with a single ``os.write``: processes and threads share
one file, and what was written before a process died is there after it. Names of threads and
their idents are reused, so a thread is known by a mark of its own: a number taken once.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENV = "LIFEGUARD_EVENTLOG"
"""Where an app in another process finds the path of the log."""

_marks = itertools.count(1)
_local = threading.local()


def thread_mark() -> int:
    """A number of this thread that no other thread of this process gets, before or after it."""
    mark: int | None = getattr(_local, "mark", None)
    if mark is None:
        mark = _local.mark = next(_marks)
    return mark


@dataclass(frozen=True)
class Event:
    pid: int
    thread: int
    event: str
    extra: dict[str, Any] = field(default_factory=dict)
    at: float = 0.0
    """Seconds of the monotonic clock, which on Linux is the same for all processes."""

    def __getitem__(self, key: str) -> Any:
        return self.extra[key]


class EventLog:
    """An append-only file of events. Any number of processes may have it open."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @classmethod
    def from_env(cls) -> EventLog:
        return cls(os.environ[ENV])

    def write(self, event: str, **extra: Any) -> None:
        line = {
            "pid": os.getpid(),
            "thread": thread_mark(),
            "event": event,
            "extra": extra,
            "at": time.monotonic(),
        }
        os.write(self._fd, json.dumps(line).encode() + b"\n")

    def read(self, *names: str) -> list[Event]:
        """The events so far, in the order they were written; only those of *names*, if given."""
        # A write that crosses a page can be seen half done.
        complete, _, _ = self.path.read_text().rpartition("\n")
        events = [Event(**json.loads(line)) for line in complete.splitlines()]
        return [event for event in events if not names or event.event in names]

    def count(self, name: str) -> int:
        return len(self.read(name))

    def per_pid(self, name: str) -> Counter[int]:
        """How many events of this name each process wrote."""
        return Counter(event.pid for event in self.read(name))

    def wait(
        self, until: Callable[[list[Event]], bool], *names: str, timeout: float = 40.0
    ) -> list[Event]:
        """Read until *until* is content with the events, at most *timeout* seconds; the events."""
        deadline = time.monotonic() + timeout
        while True:
            events = self.read(*names)
            if until(events) or time.monotonic() >= deadline:
                return events
            time.sleep(0.01)

    def wait_count(self, name: str, n: int, *, timeout: float = 40.0) -> int:
        """Wait for *n* events of this name, at most *timeout* seconds; how many there are."""
        return len(self.wait(lambda events: len(events) >= n, name, timeout=timeout))

    def close(self) -> None:
        os.close(self._fd)
