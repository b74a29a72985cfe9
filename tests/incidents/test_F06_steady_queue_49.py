"""knifecake/steady-queue#49: a supervisor restarts its workers for ever, and each of them fails.

The supervisor of a task queue had used Django's pool before it forked the workers. On macOS
they crashed in the inherited pool (SIGSEGV), were started anew, and crashed again. On Linux they
live long enough to wait for a connection that nobody will open.
"""

from __future__ import annotations

from tests.incidents.serving import Process, Sides


def test_incident_F06(sides: Sides) -> None:
    """Bare, the first worker fails, and the one that replaces it.

    Guarded, by the installed app alone, the first one works.
    """
    bare, guarded = sides.run("f06")
    assert outcome(bare) == ["couldn't get a connection after 3.00 sec"] * 2, bare.said()
    assert outcome(guarded) == ["worked"], guarded.said()


def outcome(process: Process) -> list[str]:
    return [event.extra.get("error", event.event) for event in process.log.read()]
