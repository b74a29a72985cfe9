"""Django: connections that are bounded, cleaned up in their own thread, and never left behind.

    INSTALLED_APPS += ["lifeguard.django"]
    application = lifeguard.wrap(get_asgi_application())     # or get_wsgi_application()

It stands apart from the hosts by protocol because Django keeps each connection in a thread-local,
and closes it in signals that not every request gets. What that takes: lanes (a few threads that
requests share), ``request_finished`` for every request that began, and clean-up in the threads
that nobody cleans up.
"""

from __future__ import annotations

from .._core.errors import LaneDeadlock, LaneTimeout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["LaneDeadlock", "LaneTimeout", "status"]

LaneTimeout.__module__ = LaneDeadlock.__module__ = __name__  # where people import them from


def status() -> dict[str, Any]:
    """What this process does with its connections now: lanes, who waits for one, other threads.

    Names of requests and places in the code, never values. ``manage.py lifeguard`` shows the same
    of all processes as far as PostgreSQL knows it.
    """
    from ._host import status

    return status()
