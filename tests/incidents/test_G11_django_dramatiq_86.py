"""Bogdanp/django_dramatiq#86: "sorry, too many clients already", of five periodic tasks.

Each thread of each worker process that has run one of them has a connection then: eight threads
for each core, by default. The cure is a middleware that closes them after the message, and it
depends on the order of the middlewares whether another one of them opens them again (#76).
"""

from __future__ import annotations

from tests.incidents.serving import Sides

THREADS, ROUNDS = 5, 2


def test_incident_G11(queue_sides: Sides) -> None:
    """Five tasks, twice, five threads. Bare, each thread has a connection that nobody uses.

    Guarded, with ``lifeguard.dramatiq.Middleware``, none has between two messages.
    """
    for side in queue_sides.run("g11"):
        results = sorted(event["result"] for event in side.log.read("run"))
        assert results == list(range(1, THREADS * ROUNDS + 1)), side.said()
        (done,) = side.log.read("done")
        assert done["left"] == (0 if side.guarded else THREADS), side.said()
