"""One project, three ways to keep connections, with lifeguard and without: the environment says.

What lifeguard adds is below ``if GUARDED``, and one line in ``asgi.py``.
"""

from __future__ import annotations

import os
from typing import Any

from tests.django.databases import database

GUARDED = not os.environ["APP_BARE"]
KEEPS = os.environ["SCENARIO_KEEPS"]
LANES = 4

SECRET_KEY = "test"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "tests.django.scenarios.urls"
ASGI_APPLICATION = "tests.django.scenarios.asgi.application"
INSTALLED_APPS = ["tests.django.scenarios"]
MIDDLEWARE = [
    "tests.django.scenarios.middleware.Raises",
    "tests.django.scenarios.middleware.araises",
]
DATA_UPLOAD_MAX_MEMORY_SIZE = 1000

_MORE: dict[str, dict[str, Any]] = {
    "nothing": {"CONN_MAX_AGE": 0},
    "for a minute": {"CONN_MAX_AGE": 60},
    "in a pool": {
        "OPTIONS": {
            "pool": {
                "min_size": 1,
                "max_size": LANES,
                "timeout": float(os.environ["SCENARIO_POOL_TIMEOUT"]),
            }
        }
    },
}
DATABASES = {
    "default": database(
        os.environ["APP_DSN"], application_name=os.environ["APP_NAME"], **_MORE[KEEPS]
    )
}

if GUARDED:
    INSTALLED_APPS += ["lifeguard.django"]
    LIFEGUARD = {"LANES": LANES, "EXECUTORS": True}
