"""fastapi/fastapi#811: the startup event of a sub-application is never triggered.

An app is built of smaller ones, each with handlers for "startup" and "shutdown". Only those of
the outermost app are called, without a word about the others; the documentation says so now.
"""

from __future__ import annotations

from tests.incidents.serving import Sides


def test_incident_J01(sides: Sides) -> None:
    """Two mounted APIs with a pool each.

    Bare, neither is started. Guarded, both are, once, and are stopped in the reverse order.
    """
    bare, guarded = sides.serve("uvicorn", "j01")

    assert "PoolClosed" in bare.get("/shop/").text
    assert "PoolClosed" in bare.get("/admin/").text
    bare.stop()
    assert bare.log.read() == []

    assert guarded.get("/shop/").json() == "ok"
    assert guarded.get("/admin/").json() == "ok"
    guarded.stop()
    assert [event.event for event in guarded.log.read()] == [
        "shop started",
        "admin started",
        "admin stopped",
        "shop stopped",
    ]
