"""The settings of Celery that a worker and its client must agree upon.

Apart from both, so that a worker which runs without lifeguard does not even import it.
"""

from __future__ import annotations

from typing import Any


def settings(prefix: str) -> dict[str, Any]:
    keys = {"global_keyprefix": prefix}
    return {
        "broker_transport_options": keys,
        "result_backend_transport_options": keys,
        "broker_connection_retry_on_startup": True,
        "task_default_queue": "tasks",
    }
