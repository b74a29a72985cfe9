"""codingjoe/django-health-check#438: a check that closes connections closes those of its caller.

The cure for checks in threads (H02) was to close all connections after each check. Without threads
the check runs in the request's own one, and closes the connection that the request goes on to
use: it has to connect anew. In the middle of a transaction its work is lost.
"""

from __future__ import annotations

from tests.incidents.serving import Sides


def test_incident_H03(sides: Sides) -> None:
    """Bare, the request has another backend after the check, and a transaction is gone.

    Guarded, with ``@lifeguard.task`` on the check instead, the request keeps its connection, and
    a check in a thread of its own still closes what it opened.
    """
    bare, guarded = sides.serve("waitress", "h03")

    seen = bare.get("/").json()
    assert seen["before"] != seen["after"]
    assert bare.get("/transfer").text == "ProgrammingError"

    seen = guarded.get("/").json()
    assert seen["before"] == seen["after"]
    assert guarded.get("/transfer").text == "1"
    assert guarded.get("/threaded").text == "0"
