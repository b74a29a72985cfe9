"""The settings of a Django project with procrastinate's own app for Django."""

from __future__ import annotations

import os

from tests.django.databases import database
from tests.queues.apps.jobs import BARE, DSN, QUEUE

INSTALLED_APPS = ["procrastinate.contrib.django"]
DATABASES = {
    "default": database(
        DSN,
        application_name=f"{QUEUE}django",
        OPTIONS={"options": f"-c search_path={os.environ['APP_SCHEMA']}"},
    )
}
PROCRASTINATE_WORKER_DEFAULTS = {"concurrency": 4, "fetch_job_polling_interval": 0.05}
PROCRASTINATE_IMPORT_PATHS = ["tests.queues.apps.procrastinate_django_tasks"]
if not BARE:
    INSTALLED_APPS += ["lifeguard.django"]
    PROCRASTINATE_ON_APP_READY = "lifeguard.procrastinate.install"
