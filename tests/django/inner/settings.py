"""The environment says whether lifeguard.django is installed."""

from __future__ import annotations

import os

from tests.django.databases import database

SECRET_KEY = "test"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "tests.django.inner.app"
STATIC_URL = "static/"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.staticfiles",
    "channels",
]
MIDDLEWARE: list[str] = []
CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
MIGRATION_MODULES = dict.fromkeys(("auth", "contenttypes"))  # their tables at once
_NAME = os.environ["INNER_NAME"]
DATABASES = {
    "default": database(
        os.environ["INNER_DSN"],
        application_name=_NAME,
        TEST={"NAME": f"test_{_NAME}"},
        CONN_MAX_AGE=int(os.environ.get("INNER_AGE", "0")),
    )
}

if os.environ["INNER_GUARDED"]:
    INSTALLED_APPS += ["lifeguard.django"]
    LIFEGUARD = {"LANES": 4, "EXECUTORS": True}
