from __future__ import annotations

import os

from tests.django.databases import database

GUARDED = os.environ["SEED_SIDE"] == "guarded"
POOLED = bool(os.environ.get("SEED_POOL"))

SECRET_KEY = "not-a-secret"
INSTALLED_APPS = ["tests.incidents.seeds.multithreaded"]
USE_TZ = True
TIME_ZONE = "UTC"
DATABASES = {
    "default": database(
        os.environ["SEED_DSN"],
        CONN_MAX_AGE=0 if POOLED else int(os.environ["SEED_CONN_MAX_AGE"]),
        OPTIONS={"pool": {"min_size": 1, "max_size": 4, "timeout": 3}} if POOLED else {},
    )
}
LOGGING_CONFIG = None

if GUARDED:
    INSTALLED_APPS += ["lifeguard.django"]
