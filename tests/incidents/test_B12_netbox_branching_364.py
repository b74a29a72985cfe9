"""netboxlabs/netbox-branching#364: connections to databases that are not in the list never close.

Each branch of the data is a schema, reached by a database alias of its own that is made up when it
is asked for. Django looks for old connections under the aliases that it can list.
"""

from __future__ import annotations

from lifeguard.testing import Postgres
from tests.incidents.serving import Sides

BRANCHES = 5


def test_incident_B12(sides: Sides, pg: Postgres, appname: str) -> None:
    """Bare, with CONN_MAX_AGE=0, a connection is left open for each branch that was looked at.

    Guarded, there is none at the end of the request.
    """
    bare, guarded = sides.serve("gunicorn", "b12", "--threads", "2")

    for side in (bare, guarded):
        for number in range(BRANCHES):
            assert side.get(f"/{number}").text == "ok", side.said()
    assert pg.wait_count(0, application_name=f"{appname}guarded") == 0
    assert pg.count(f"{appname}bare") >= BRANCHES
