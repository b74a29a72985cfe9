"""psycopg/psycopg#954: a program with a pool takes 20 seconds to end, since Python 3.13.

Its work is done; the interpreter then waits for each of the pool's threads, 5 s at a time, and
says "couldn't stop thread". Closing the pool avoids it, which nothing had required before.
"""

from __future__ import annotations

import sys
import time

from lifeguard.testing import Postgres
from tests.incidents.serving import Process, Sides


def test_incident_K22(sides: Sides, pg: Postgres, appname: str) -> None:
    """Bare, the program is there long after it has ended. Guarded, the pool is closed, and it ends.

    Python 3.11 and 3.12 do not wait for those threads: there, both programs end at once, and the
    guarded one has closed its pool all the same.
    """
    bare, guarded = sides.start("script", "k22")
    for side in (bare, guarded):
        assert side.log.wait_count("done", 1) == 1, side.said()
    assert guarded.wait() == 0
    assert "couldn't stop thread" not in guarded.said()
    if sys.version_info >= (3, 13):
        assert wait_for_complaint(bare)
        bare.kill()
    else:
        assert bare.wait() == 0
    assert pg.wait_count(0, prefix=appname) == 0


def wait_for_complaint(process: Process) -> bool:
    """It comes after five seconds, for each of the pool's threads."""
    deadline = time.monotonic() + 40
    while process.popen.poll() is None and time.monotonic() < deadline:
        if "couldn't stop thread" in process.said():
            return True
        time.sleep(0.05)
    return "couldn't stop thread" in process.said()
