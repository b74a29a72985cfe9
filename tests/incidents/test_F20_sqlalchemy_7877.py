"""sqlalchemy/sqlalchemy#7877: the recommended start of a child breaks the parent.

``multiprocessing.Pool(initializer=engine.dispose)`` was the advice of the documentation. It closes
in the child what the parent goes on with; since then there is ``dispose(close=False)``, for those
who know. (A psycopg pool has nothing like it.)
"""

from __future__ import annotations

from tests.incidents.serving import Sides


def test_incident_F20(sides: Sides) -> None:
    """Bare, the children work, and the parent's next query finds its connection gone.

    Guarded, the same initializer closes what is the child's own, and the parent's query is
    answered.
    """
    bare, guarded = sides.run("f20")
    for side in (bare, guarded):
        (processes,) = side.log.read("processes")
        assert processes["answers"] == [0, 1, 2, 3], side.said()

    (after,) = bare.log.read("after")
    assert "closed the connection unexpectedly" in after["error"], bare.said()

    (after,) = guarded.log.read("after")
    assert after.extra == {"answer": 2}, guarded.said()
