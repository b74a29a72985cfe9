"""danidee10/channels_postgres#18: a pool belongs to an event loop, and each request has its own.

Under WSGI Django runs every async view in an event loop of its own. A channel layer that keeps an
async pool for its messages served the first request, and the next one found the pool of a loop
that has ended. The cure was to open a connection for each call.
"""

from __future__ import annotations

import httpx

from tests.incidents.serving import Process, Sides


def test_incident_I07(sides: Sides) -> None:
    """Bare, the next request waits for a connection in vain, as soon as it needs another one; now
    and then it waits for ever.

    Guarded, the same pool object is opened for each loop that uses it, and closed with it.
    """
    bare, guarded = sides.serve("waitress", "i07")
    assert [send(bare, 1), send(bare, 4)] in (["sent", "PoolTimeout"], ["sent", "ReadTimeout"])
    assert [send(guarded, members) for members in (1, 4, 4)] == ["sent"] * 3, guarded.said()


def send(side: Process, members: int) -> str:
    try:
        return side.get(f"/{members}", timeout=60 if side.guarded else 9).text
    except httpx.ReadTimeout as exc:
        return type(exc).__name__
