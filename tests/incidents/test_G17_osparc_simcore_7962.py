"""ITISFoundation/osparc-simcore#7962: an app's lifespan, rebuilt by hand in a Celery worker.

Tasks need what the web app has: an event loop, and a pool that is open on it. The worker started
both in a thread, and waited for an event, which was set before the startup instead of after
it. While the database was being migrated, tasks found nothing there. ("Swapping these lines was
fundamental!")
"""

from __future__ import annotations

import random

import pytest

from lifeguard.testing import Postgres
from tests.incidents.queries import wait_until_blocked
from tests.incidents.queues import client, outcome
from tests.incidents.serving import Sides


def test_incident_G17(queue_sides: Sides, pg: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task is sent while the migration waits for a lock that this test holds.

    Bare, it fails. Guarded, with a resource and an async task, it waits for the startup; and the
    worker's end is the app's shutdown, once.
    """
    key = random.getrandbits(61) * 2
    monkeypatch.setenv("G17_LOCK", str(key))
    with pg.connect() as lock:
        lock.execute("SELECT pg_advisory_lock(%s), pg_advisory_lock(%s)", [key, key + 1])
        workers = ("celery", "g17", "--pool", "threads", "--concurrency", "2")
        bare, guarded = queue_sides.start(*workers)

        with client(bare) as app:
            assert outcome(app.send_task("upload")).startswith("AttributeError"), bare.said()

        with client(guarded) as app:
            uploads = [app.send_task("upload") for _ in range(2)]
            wait_until_blocked(pg, key + 1)
            lock.execute("SELECT pg_advisory_unlock(%s)", [key + 1])
            assert [outcome(upload) for upload in uploads] == [42, 42], guarded.said()
    assert guarded.stop() == 0
    assert [event.event for event in guarded.log.read()] == ["up", "down"]
