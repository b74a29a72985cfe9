"""emissions-api/emissions-api#237: a ``multiprocessing.Pool`` and a connection through TLS.

The import of satellite data had asked the database before it started its processes, and failed
with "decryption failed or bad record mac". The fix gives each process a session of its own; a
reviewer could not reproduce the error, which depends on who comes second.
"""

from __future__ import annotations

from pathlib import Path

from lifeguard.testing import Postgres
from tests.incidents.serving import both_sides


def test_incident_F13(tls_pg: Postgres, tmp_path: Path) -> None:
    """Two processes import one file each, in turn. Bare, the second fails. Guarded, none does."""
    with both_sides(tls_pg.named("incident-f13"), tmp_path) as sides:
        bare, guarded = sides.run("f13")

    imported, failed = bare.log.read()
    assert (imported.event, failed.event) == ("imported", "failed")
    assert "bad record mac" in failed["error"]

    assert [event.event for event in guarded.log.read()] == ["imported", "imported"]
    assert len(guarded.log.per_pid("imported")) == 2
    assert tls_pg.wait_count(0, prefix="incident-f13") == 0
