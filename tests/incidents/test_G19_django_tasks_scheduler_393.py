"""django-commons/django-tasks-scheduler#393: after a maintenance pass, every job fails.

The worker forks for each job, knows that it must not hold a connection then, and closes Django's at
its start. Its own maintenance opens one again. Through TLS the first job can still use it, and
nobody after that: "SSL error", in each job, until the worker is replaced.
"""

from __future__ import annotations

from lifeguard.testing import Postgres
from tests.incidents.serving import Sides

JOBS = 3


def test_incident_G19(sides: Sides, tls_pg: Postgres, appname: str) -> None:
    """Maintenance, three jobs, maintenance. Bare, two jobs fail, and the worker's own query.

    Guarded, by the installed app alone, each job has a connection of its own, and the worker keeps
    the one that it had.
    """
    bare, guarded = sides.run("g19", dsn=tls_pg.named(appname))

    said = [event.event for event in bare.log.read()]
    assert said == ["maintenance", "job", *["job failed"] * 2, "maintenance failed"], bare.said()
    errors = {event["error"] for event in bare.log.read("job failed")}
    assert any("SSL" in error or "server closed" in error for error in errors), errors

    said = [event.event for event in guarded.log.read()]
    assert said == ["maintenance", *["job"] * JOBS, "maintenance"], guarded.said()
    before, after = guarded.log.read("maintenance")
    assert before["backend"] == after["backend"]
    assert len({event["backend"] for event in guarded.log.read()}) == 1 + JOBS
