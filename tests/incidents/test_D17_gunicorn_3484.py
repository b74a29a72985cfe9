"""benoitc/gunicorn#3484: the ASGI worker cancels a request in the middle of its query.

When the client is gone, gunicorn's own ASGI worker cancels the app, and the cancellation arrives
inside of database calls. Reported with SQLAlchemy, whose pool could not clean up any more;
gunicorn has since put a grace period before it, after which the same happens.
"""

from __future__ import annotations

from tests.incidents.serving import Sides


def test_incident_D17(sides: Sides) -> None:
    """Bare, one client that leaves costs the only connection, and everybody after it gets a 500.

    Guarded, the next request is served.
    """
    options = ("--worker-class", "asgi", "--asgi-disconnect-grace-period", "0")
    for side in sides.serve("gunicorn", "d17", *options):
        assert side.get("/").text == "ok"
        side.get_and_leave("/report", when="working")
        assert side.log.wait_count("cancelled", 1) == 1, side.said()
        assert side.get("/").text == ("ok" if side.guarded else "PoolTimeout")
