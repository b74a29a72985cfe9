"""Where the time comes from: one name, in one place."""

from __future__ import annotations

from time import monotonic as now

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Clock = Callable[[], float]

__all__ = ["now"]
