from __future__ import annotations

import os

from tests.django.databases import database

GUARDED = os.environ["SEED_SIDE"] == "guarded"

SECRET_KEY = "not-a-secret"
ALLOWED_HOSTS = ["localhost"]
ROOT_URLCONF = "tests.incidents.seeds.sysreptor.urls"
INSTALLED_APPS = ["tests.incidents.seeds.sysreptor"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
DATABASES = {
    "default": database(
        os.environ["SEED_DSN"],
        OPTIONS={"pool": {"min_size": 1, "max_size": 4, "timeout": 1}},
    )
}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"level": "WARNING", "handlers": ["console"]},
}

if GUARDED:
    INSTALLED_APPS += ["lifeguard.django"]
