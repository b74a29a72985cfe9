"""What ``app.close()`` leaves of an app that sends tasks and waits for their results."""

from __future__ import annotations

from typing import Any

from celery import Celery


def close(app: Celery) -> None:
    """Close *app* and the connections of its result backend, for good.

    A result that is dropped later would say goodbye to the broker, on a connection of its own that
    nobody closes.
    """
    backend: Any = app.backend
    consumer = getattr(backend, "result_consumer", None)
    if consumer is not None:
        consumer.cancel_for = _ignore
        consumer.stop()
        backend.client.connection_pool.disconnect()
    app.close()


def _ignore(*args: object, **kwargs: object) -> None: ...
