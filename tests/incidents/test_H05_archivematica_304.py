"""artefactual/archivematica#304: "server has gone away", for as long as the thread lives.

The threads of a server keep their connections over the night, and the database drops what was idle
for that long. Outside of requests nobody tells Django to look: each job of such a thread fails from
then on. The project wrote a decorator for every function that is run in a thread, and
misses one now and then (artefactual/archivematica#2339, eleven years later).
"""

from __future__ import annotations

from tests.incidents.serving import Sides


def test_incident_H05(sides: Sides) -> None:
    """A job, a night, three jobs. Bare, the last three fail, and so would all others.

    Guarded, with ``@lifeguard.task`` on the job, there was nothing open for the night to drop.
    """
    bare, guarded = sides.run("h05")

    assert [event.event for event in bare.log.read()] == ["done", "night", *["failed"] * 3]
    assert bare.log.read("night")[0]["dropped"] == 1
    assert bare.log.read("failed")[-1]["error"] == "the connection is closed"

    assert [event.event for event in guarded.log.read()] == ["done", "night", *["done"] * 3]
    assert guarded.log.read("night")[0]["dropped"] == 0
