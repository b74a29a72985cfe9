"""Celery's workers in a Django project: connections and pools outlive a task, by Django's rules.

Celery's own repair of Django closes every connection before and after every task, and the native
pool with it: ``CONN_MAX_AGE`` means nothing, and a pool is built for each task (celery#10554).
Here what a task has used is closed when Django would close it at the end of a request.
"""

from __future__ import annotations

from celery import signals

from .. import celery
from ._connections import tidy_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._wrap import Lifeguard


def attach(guard: Lifeguard) -> None:
    celery.connect(guard)
    signals.worker_init.connect(_on_worker, dispatch_uid="lifeguard.django")


def _on_worker(sender: Any, **_: Any) -> None:
    for fixup in sender.app._fixups:
        if type(fixup).__module__ == "celery.fixups.django":
            # It calls this before and after each task, and leaves alone what runs inline.
            fixup.worker_fixup.close_database = _close_database


def _close_database(**_: Any) -> None:
    """For tasks that are no units, too."""
    tidy_thread()
