"""ansible/awx#10191: new threads and processes must not use the connections they find.

A dispatcher forks its workers and a periodic beat, and starts threads. Wherever that happens, its
authors close Django's connection and cache by hand, with a comment on race conditions, and a
decorator for the functions that were forgotten.
"""

from __future__ import annotations

from tests.incidents.serving import Sides


def test_incident_H08(sides: Sides) -> None:
    """A process is forked inside of a transaction, asks the database, and closes its connection.

    Bare, it asks on its parent's connection, and ends it. Guarded, by the installed app alone, it
    has one of its own, and the parent's transaction goes on.
    """
    bare, guarded = sides.run("h08")

    parent, child, failed = bare.log.read()
    assert child["backend"] == parent["backend"], bare.said()
    assert (failed.event, failed["error"]) == ("failed", "OperationalError")

    parent, child, again = guarded.log.read()
    assert child["backend"] != parent["backend"] == again["backend"], guarded.said()
    assert [event.event for event in guarded.log.read()] == ["dispatcher", "beat", "dispatcher"]
