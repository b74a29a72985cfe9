"""nautobot/nautobot#127: "decryption failed or bad record mac", now and then.

The documented configuration had uWSGI load the app before it forks its workers, and a plugin
queried the database while it was loaded. The workers share one TLS session from then on, in which
each of them counts the records by itself. The workaround is ``lazy-apps``.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from lifeguard.testing import Postgres
from tests.incidents.serving import Process, both_sides


def test_incident_F07(tls_pg: Postgres, tmp_path: Path) -> None:
    """Two requests one after the other, to one worker and then to the other.

    Bare, the first is served, and the second breaks the session, for everybody. Guarded, both
    are served.
    """
    with both_sides(tls_pg.named("incident-f07"), tmp_path) as sides:
        bare, guarded = sides.serve("uwsgi", "f07", "--processes", "2", "--enable-threads")

        first, second = one_each(bare)
        assert first == "ok"
        assert "bad record mac" in second

        assert one_each(guarded) == ("ok", "ok")
    assert tls_pg.wait_count(0, prefix="incident-f07") == 0


def one_each(process: Process) -> tuple[str, str]:
    """What each of the two workers answers, in turn."""
    first = process.get("/").text
    worker = process.log.read("served")[0]["worker"]
    os.kill(worker, signal.SIGSTOP)  # so that the next request is the other's
    try:
        second = process.get("/").text
    finally:
        os.kill(worker, signal.SIGCONT)
    assert process.log.read("served")[1]["worker"] != worker
    return first, second
