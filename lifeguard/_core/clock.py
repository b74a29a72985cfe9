"""Where the time comes from. One place, so that tests can hand in another."""

from __future__ import annotations

from time import monotonic as now

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Clock = Callable[[], float]

__all__ = ["now"]
