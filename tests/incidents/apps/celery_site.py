"""A Celery app on the broker of this side. With Django around it, Celery's own fixup is active."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from tests.incidents.apps import REDIS
from tests.incidents.apps.django_site import configure


def make_celery(name: str, **conf: Any) -> Celery:
    app = Celery(name, broker=REDIS, backend=REDIS)
    app.conf.update(broker_connection_retry_on_startup=True, worker_prefetch_multiplier=1, **conf)
    return app


def make_django_celery(name: str, **database: Any) -> Celery:
    """The same in a Django project, *database* being the rest of its ``DATABASES`` entry."""
    configure(name, **database)
    os.environ["DJANGO_SETTINGS_MODULE"] = name  # is there, says this to Celery
    return make_celery(name)
