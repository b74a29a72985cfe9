"""The configuration of gunicorn for that app: ``-c python:...``."""

from __future__ import annotations

from tests.incidents.apps import GUARDED

worker_class = "uvicorn_worker.UvicornWorker"
graceful_timeout = 40 if GUARDED else 1  # which bare is waited for in vain

if GUARDED:
    from lifeguard.gunicorn import post_worker_init  # noqa: F401  # gunicorn reads it
