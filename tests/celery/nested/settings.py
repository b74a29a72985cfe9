from __future__ import annotations

import os

from tests.django.databases import database

GUARDED = os.environ["NESTED_GUARDED"] == "1"

SECRET_KEY = "not-a-secret"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.celery.nested.callers"
INSTALLED_APPS: list[str] = ["lifeguard.django"] if GUARDED else []
DATABASES = {
    "default": database(
        os.environ["NESTED_DSN"],
        application_name=os.environ["NESTED_NAME"],
        CONN_MAX_AGE=0,  # the age at which a clean-up finds most to close
    )
}
USE_TZ = True
LOGGING_CONFIG = None
