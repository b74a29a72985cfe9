"""The Django of the tasks that use threads and loops of their own: a pool that waits a second."""

from __future__ import annotations

import os

from tests.celery.apps.site import *  # noqa: F403
from tests.celery.apps.site import DATABASES

DATABASES["pooled"]["OPTIONS"]["pool"]["timeout"] = float(os.environ.get("APP_TIMEOUT", "1"))
LIFEGUARD = {"EXECUTORS": bool(os.environ.get("APP_EXECUTORS"))}
