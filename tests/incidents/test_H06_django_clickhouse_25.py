"""carrotquest/django-clickhouse#25: each sync leaks the connections of its threads.

A sync asks its sources side by side, in threads that end with the answer; a thread class had to
be written that closes Django's connections in its ``run()``. The report is from before Django had
a pool. With one, what a thread takes along is not only left open: its place is lost for good.
"""

from __future__ import annotations

from tests.incidents.serving import Sides

SYNCS = 3


def test_incident_H06(sides: Sides) -> None:
    """A native pool of four, two threads for each sync. Bare, the third one gets nothing.

    Guarded, by the installed app alone, each thread gives its connection back while it ends.
    """
    bare, guarded = sides.run("h06")

    first, second, third = bare.log.read("synced")
    assert first["answers"] == second["answers"] == ["1", "2"], bare.said()
    assert third["answers"] == ["couldn't get a connection after 3.00 sec"] * 2

    synced = guarded.log.read("synced")
    assert [event["answers"] for event in synced] == [["1", "2"]] * SYNCS, guarded.said()
