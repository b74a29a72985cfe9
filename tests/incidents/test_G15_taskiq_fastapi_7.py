"""taskiq-python/taskiq-fastapi#7: a web app's lifespan is not run in its task worker.

The pool is opened by the lifespan of the FastAPI app. The worker of its queue has no web server
that would run it, and knows events of its own: whoever wants the pool there writes everything
twice. The integration runs the lifespan of the whole web app in the worker since.
"""

from __future__ import annotations

from tests.incidents.serving import Sides


def test_incident_G15(queue_sides: Sides) -> None:
    """Two tasks. Bare, they find no pool.

    Guarded, the pool is a resource, and not the web app's: it is opened in whatever process has
    work for it, once, and closed at its end.
    """
    bare, guarded = queue_sides.run("g15")
    assert [event.event for event in bare.log.read()] == ["failed"] * 2, bare.said()
    assert {event["error"] for event in bare.log.read()} == {"AttributeError"}

    said = [event.event for event in guarded.log.read()]
    assert said == ["up", "done", "done", "down"], guarded.said()
