"""The columns of the matrix: every way a worker can end, and where it does not apply."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from tests.servers.harness import GRACEFUL
from tests.servers.rows import Row

SHORT = 1.0
"""Seconds that a short request still takes after the signal."""
LIMIT = 2
"""Seconds of the server's limit, where a request is to go past it."""
GRACE = 1.0
"""lifeguard's grace there: below the server's limit, as the documentation says."""
REQUESTS = 40
"""After so many requests a worker is recycled: more than it takes to have all workers up."""


@dataclass(frozen=True)
class Event:
    key: str
    title: str
    sends: signal.Signals | None = None
    to: str = "master"
    """Whom the signal is sent to: ``master``, the process that was started, or one ``worker``."""
    view: str = ""
    """What is in flight when it happens."""
    ends: str = "all"
    """Whose end is waited for: of ``all``, of the ``workers`` there are, or of ``one`` of them."""
    wait: float = 12.0
    """Seconds after which what has not ended is taken to live on."""

    @property
    def kills(self) -> bool:
        """Whether it leaves no Python code anything to do, in the process that it hits."""
        return self.sends is signal.SIGKILL

    @property
    def timed(self) -> bool:
        """Whether the bare app's end is a measure for the guarded one's."""
        return not self.kills

    @property
    def slack(self) -> float:
        """Seconds by which two ends of the same kind differ by themselves."""
        if self.key == "timeout":
            return 1.0  # gunicorn's and uWSGI's masters look once a second
        if self.key == "hup":
            return 0.5  # uvicorn starts one worker before it ends the next: that is in it, too
        return 0.0

    @property
    def graceful(self) -> float:
        return LIMIT if self.key == "over" else GRACEFUL

    def more(self, row: Row) -> str:
        """The server's options for this event."""
        if self.key == "recycle":
            return row.limits.recycle.format(REQUESTS)
        if self.key == "timeout":
            return row.limits.timeout.format(LIMIT)
        return ""

    def env(self) -> dict[str, str]:
        """The app's options for this event."""
        if self.key == "over":
            return {"APP_GRACE": str(GRACE)}
        if self.key == "kill-master":
            return {"APP_DIE_WITH_PARENT": "1"}
        return {}

    def missing(self, row: Row) -> str | None:
        """Why the cell of this row is empty, if it is."""
        alone = "one process: there is no master"
        if self.key in ("term-worker", "kill-master") and not row.master:
            return alone
        if self.key == "hup" and not row.limits.reload:
            return "no reload" if row.master else f"{alone}, and no reload"
        if self.key == "recycle" and not row.limits.recycle:
            if row.package == "granian":
                return "no such limit (--workers-lifetime is at least 60 s)"
            return "no such limit"
        if self.key == "timeout" and not row.limits.timeout:
            return "no such limit"
        if self.key == "timeout" and "gthread" in row.name:
            return "not enforced: the worker, with its other threads, is alive"
        return None


EVENTS = (
    Event("term", "SIGTERM, idle", signal.SIGTERM),
    Event("busy", "SIGTERM, short request", signal.SIGTERM, view="wait"),
    Event("over", "SIGTERM, past the limit", signal.SIGTERM, view="wait"),
    Event("int", "SIGINT", signal.SIGINT),
    Event("hup", "SIGHUP, reload", signal.SIGHUP, ends="workers"),
    Event("recycle", "max-requests", to="worker", ends="one", wait=25.0),
    Event("timeout", "worker timeout", to="worker", view="block", ends="one"),
    Event("term-worker", "SIGTERM to a worker", signal.SIGTERM, to="worker", ends="one"),
    Event("kill-worker", "SIGKILL, idle", signal.SIGKILL, to="worker", ends="one"),
    Event(
        "kill-query", "SIGKILL in mid-query", signal.SIGKILL, to="worker", view="query", ends="one"
    ),
    Event("kill-master", "SIGKILL of the master", signal.SIGKILL, ends="workers", wait=8.0),
)
