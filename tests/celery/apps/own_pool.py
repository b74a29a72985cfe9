"""A pool of its own for Celery: ``CELERY_CUSTOM_WORKER_POOL``, as people have for asyncio, say."""

from __future__ import annotations

from celery.concurrency.solo import TaskPool as Solo


class TaskPool(Solo):
    """One task at a time, as in solo, but a name that nobody knows."""
