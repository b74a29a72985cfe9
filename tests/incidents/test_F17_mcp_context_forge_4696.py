"""IBM/mcp-context-forge#4696: a fork hook that disposes of the pool ends the parent's connections.

The hook of each gunicorn worker disposed of the engine it had inherited. A reviewer stopped it:
closing says goodbye on a socket that the parent still uses. (``ConnectionPool.close()`` of
psycopg is the same mistake.)
"""

from __future__ import annotations

from tests.incidents.serving import Sides


def test_incident_F17(sides: Sides) -> None:
    """Bare, the child's ``dispose()`` ends the backend under the parent, whose next query fails.

    Guarded, the child has let go of the inherited sockets before its first line of code: there is
    nothing to close, and the parent goes on with the very same backend.
    """
    bare, guarded = sides.run("f17")

    assert [event.event for event in bare.log.read()] == ["answered", "broken"], bare.said()

    first, second = guarded.log.read()
    assert (first.event, second.event) == ("answered", "answered"), guarded.said()
    assert first["backend"] == second["backend"]
