"""safe-global/safe-decoder-service#297: connections "idle in transaction", until there are no more.

A task reads whether it should download something, and downloads it: the session of its read is
open meanwhile, in a transaction. Another session, of the startup, was never closed at all. The
connections piled up, and new ones were refused.
"""

from __future__ import annotations

from tests.incidents.serving import Sides

TASKS = 3


def test_incident_G18(queue_sides: Sides) -> None:
    """A startup that forgets its session, a pool of two, and three downloads at once.

    Bare, one task gets to its download, in a transaction, beside that of the startup, and two
    find no connection. Guarded, ``lifeguard.release()`` before the download has nobody wait in a
    transaction: all three are done. The startup is a ``lifeguard.task``: its connection comes
    back, and a report names it. (That a task waits in a transaction is not reported: without that
    line it does.)
    """
    bare, guarded = queue_sides.run("g18")

    assert bare.log.read("started")[0]["idle"] == 1, bare.said()
    assert bare.log.read("downloading")[0]["idle"] == 2
    assert (bare.log.count("decoded"), bare.log.count("no connection")) == (1, 2)

    assert guarded.log.read("started")[0]["idle"] == 0, guarded.said()
    assert guarded.log.read("downloading")[0]["idle"] == 0
    assert guarded.log.count("decoded") == TASKS, guarded.said()
    (report,) = (line for line in guarded.said().splitlines() if "was not given back" in line)
    assert "initialize" in report
