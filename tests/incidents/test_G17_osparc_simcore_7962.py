"""ITISFoundation/osparc-simcore#7962: an app's lifespan, rebuilt by hand in a Celery worker.

Tasks need what the web app has: an event loop, and a pool that is open on it. The worker started
both in a thread, and waited for an event, which was set before the startup instead of after
it. While the database was being migrated, tasks found nothing there. ("Swapping these lines was
fundamental!")
"""

from __future__ import annotations

from lifeguard.testing import Postgres
from tests.incidents.queries import wait_until_blocked
from tests.incidents.queues import client, outcome
from tests.incidents.serving import Sides


def test_incident_G17(queue_sides: Sides, pg: Postgres) -> None:
    """A task is sent while the migration waits for a lock that this test holds.

    Bare, it fails. Guarded, with a resource and an async task, it waits for the startup; and the
    worker's end is the app's shutdown, once.
    """
    bare, guarded = queue_sides.start("celery", "g17", "--pool", "threads", "--concurrency", "2")

    with pg.connect() as lock, client(bare) as app:
        lock.execute("SELECT pg_advisory_lock(%s)", [bare.port])
        assert outcome(app.send_task("upload")).startswith("AttributeError"), bare.said()

    with pg.connect() as lock, client(guarded) as app:
        lock.execute("SELECT pg_advisory_lock(%s)", [guarded.port])
        uploads = [app.send_task("upload") for _ in range(2)]
        wait_until_blocked(pg, guarded.port)
        lock.execute("SELECT pg_advisory_unlock(%s)", [guarded.port])
        assert [outcome(upload) for upload in uploads] == [42, 42], guarded.said()
    assert guarded.stop() == 0
    assert [event.event for event in guarded.log.read()] == ["up", "down"]
