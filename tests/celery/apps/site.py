"""The Django of the tasks: one database three times, kept for nothing, for a minute, and in a pool.

Celery's Django fixup comes with ``DJANGO_SETTINGS_MODULE``: an app module sets it before it makes
its Celery app.
"""

from __future__ import annotations

import os

from tests.celery.apps import BARE, DSN, application_name
from tests.django.databases import database

POOL_SIZE = int(os.environ.get("APP_POOL_SIZE", "4"))

SECRET_KEY = "tests"
USE_TZ = True
INSTALLED_APPS = [] if BARE else ["lifeguard.django"]
DATABASES = {
    "default": database(DSN, application_name=application_name("default"), CONN_MAX_AGE=0),
    "kept": database(DSN, application_name=application_name("kept"), CONN_MAX_AGE=60),
    "pooled": database(
        DSN,
        application_name=application_name("pooled"),
        OPTIONS={"pool": {"min_size": 2, "max_size": POOL_SIZE, "timeout": 40}},
    ),
}
