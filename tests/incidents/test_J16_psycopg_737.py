"""psycopg/psycopg#737: an AsyncConnectionPool hangs when it is used in another event loop.

The pool was opened by one ``asyncio.run`` and used by the next. The tasks that open connections
had ended with the first loop, so every borrower waited for its full timeout.
"""

from __future__ import annotations

from tests.incidents.serving import Sides


def test_incident_J16(sides: Sides) -> None:
    """Bare, a borrower in the second loop waits for its full timeout, in vain.

    Guarded, the same pool object is opened anew in the second loop.
    """
    bare, guarded = sides.run("j16")
    assert [event.event for event in bare.log.read()] == ["PoolTimeout"], bare.said()
    assert [event.event for event in guarded.log.read()] == ["ok"], guarded.said()
