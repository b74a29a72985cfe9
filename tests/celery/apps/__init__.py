"""Celery apps for a worker in another process. Each file is one app; ``APP_BARE`` leaves it alone.

What they share is here: how they are configured, and what they say to the test.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_ready
from psycopg.conninfo import make_conninfo

from tests.celery.config import settings
from tests.support.eventlog import EventLog

BARE = bool(os.environ.get("APP_BARE"))
DSN = os.environ["APP_DSN"]
NAME = os.environ["APP_NAME"]
POOL = os.environ["APP_POOL"]

log = EventLog.from_env()

_gates = Path(os.environ["APP_GATES"])
_GIVE_UP = 90.0


def application_name(suffix: str) -> str:
    """By which the test counts these connections: ``worker.opened()[suffix]``."""
    return f"{NAME}.{suffix}"


def named(suffix: str) -> str:
    """How to connect under that name."""
    return make_conninfo(DSN, application_name=application_name(suffix))


def celery_app(main: str, **conf: Any) -> Celery:
    """An app with the broker and the prefix of this worker. Configured, not yet guarded."""
    broker = os.environ["APP_BROKER"]
    app = Celery(main, broker=broker, backend=broker)
    app.conf.update(settings(os.environ["APP_PREFIX"]), **conf)
    return app


@worker_ready.connect
def _say_ready(**_: Any) -> None:
    log.write("ready")


def wait_at_gate(name: str) -> None:
    """Block until the test opens this gate."""
    deadline = time.monotonic() + _GIVE_UP
    while not (_gates / name).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody opened the gate {name!r}")
        time.sleep(0.01)
