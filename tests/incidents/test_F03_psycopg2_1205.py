"""psycopg/psycopg2#1205: a fork that nobody controls, while a connection is borrowed.

The pull request wanted pools that notice a fork. It left open what becomes of a connection that
is out at that moment, which a pool that checks at the next borrow cannot help with.
"""

from __future__ import annotations

from tests.incidents.serving import Process, Sides


def test_incident_F03(sides: Sides) -> None:
    """A child is forked inside of a transaction, and ends with ``sys.exit()``.

    Bare, leaving the block in the child rolls the parent's transaction back. The parent commits
    without an error, and its work is lost. Guarded, the child cannot reach the parent's
    connection, and the transaction is committed.
    """
    bare, guarded = sides.run("f03")
    assert outcome(bare) == ["no error", "aborted"], bare.said()
    assert outcome(guarded) == ["no error", "committed"], guarded.said()


def outcome(process: Process) -> list[str]:
    return [event.extra.get("status", event.event) for event in process.log.read()]
