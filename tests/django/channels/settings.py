"""A project with consumers, users and sessions. The environment says how it keeps connections.

What lifeguard adds is below ``if GUARDED``, and one line in ``asgi.py``.
"""

from __future__ import annotations

import os
from typing import Any

from tests.django.databases import database

GUARDED = not os.environ["APP_BARE"]
KEEPS = os.environ["CHANNELS_KEEPS"]
LANES = 4

SECRET_KEY = "test"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "tests.django.channels.asgi"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "channels",
]
MIDDLEWARE: list[str] = []
CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}

_MORE: dict[str, dict[str, Any]] = {
    "nothing": {"CONN_MAX_AGE": 0},
    "for a minute": {"CONN_MAX_AGE": 60},
    "in a pool": {"OPTIONS": {"pool": {"min_size": 1, "max_size": LANES, "timeout": 5}}},
}
DATABASES = {
    "default": database(
        os.environ["APP_DSN"], application_name=os.environ["APP_NAME"], **_MORE[KEEPS]
    )
}

if GUARDED:
    INSTALLED_APPS += ["lifeguard.django"]
    LIFEGUARD = {"LANES": LANES}
