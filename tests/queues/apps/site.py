"""The Django of the jobs. Nothing of a connection is to stay after a job: CONN_MAX_AGE is 0."""

from __future__ import annotations

import os

from tests.django.databases import database

_dsn, _name = os.environ["APP_DSN"], f"{os.environ['APP_QUEUE']}django"

SECRET_KEY = "tests"
USE_TZ = True
INSTALLED_APPS = [] if "APP_BARE" in os.environ else ["lifeguard.django"]
DATABASES = {"default": database(_dsn, application_name=_name, CONN_MAX_AGE=0)}
