"""danidee10/channels_postgres#18: a pool belongs to an event loop, and each request has its own.

Under WSGI Django runs every async view in an event loop of its own. A channel layer that keeps an
async pool for its messages served the first request, and the next one found the pool of a loop
that has ended. The cure was to open a connection for each call.
"""

from __future__ import annotations

from tests.incidents.serving import Sides


def test_incident_I07(sides: Sides) -> None:
    """Bare, the next request waits for a connection in vain, as soon as it needs another one.

    Guarded, the same pool object is opened for each loop that uses it, and closed with it.
    """
    for side in sides.serve("waitress", "i07"):
        answers = [side.get(f"/{members}").text for members in (1, 4, 4)]
        if side.guarded:
            assert answers == ["sent"] * 3, side.said()
        else:
            assert answers == ["sent", "PoolTimeout", "PoolTimeout"], side.said()
