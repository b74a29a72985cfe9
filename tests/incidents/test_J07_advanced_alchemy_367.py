"""litestar-org/advanced-alchemy#367: an extension's startup is skipped when the app has a lifespan.

An extension registered handlers for "startup" and "shutdown". Somebody gave the app a
``lifespan=``, which replaces all of them, silently, and the extension's engine was neither made
nor disposed of. The same befell fastapi_mcp (tadata-org/fastapi_mcp#309).
"""

from __future__ import annotations

from lifeguard.testing import Postgres
from tests.incidents.serving import Sides


def test_incident_J07(sides: Sides, pg: Postgres, appname: str) -> None:
    """Bare, the extension's pool is not open at the first request. Guarded, it is, and is closed.

    The app's own lifespan runs on both sides.
    """
    bare, guarded = sides.serve("uvicorn", "j07")
    assert "PoolClosed" in bare.get("/").text
    assert guarded.get("/").json() == "ok"
    for side in (bare, guarded):
        assert side.log.count("lifespan") == 1
        side.stop()
    assert pg.wait_count(0, prefix=appname) == 0
