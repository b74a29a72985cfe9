"""dimagi/open-chat-studio#2553: every thread of an executor opens a connection, and keeps it.

An agent framework runs its steps in thread pools. Each new thread opened a connection of Django's,
and nobody closed it when the step was done; the project had to replace the framework's executor.
"""

from __future__ import annotations

from tests.incidents.serving import Sides

STEPS = 4


def test_incident_H01(sides: Sides) -> None:
    """Bare, the steps are done and each thread has a connection.

    Guarded, with lifeguard's executor in place of the standard one, none has.
    """
    for side in sides.run("h01"):
        (done,) = side.log.read("done")
        assert done["results"] == [1, 2, 3, 4], side.said()
        assert done["left"] == (0 if side.guarded else STEPS)
