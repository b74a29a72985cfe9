"""Who looks on. Metrics, leak reports and the doctor observe; they never take part.

Every method does nothing here, so an observer overrides what it cares about, and a new event
breaks nobody. An observer that raises is logged and left out of that event.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from collections.abc import Iterable, Sequence

    from .lifetime import Lifetime
    from .resource import Resource
    from .unit import Borrow, Unit
    from .worker import Worker


class Observer:
    """Override what you want to see. Called where it happens: be quick, and do not block.

    Example::

        class Count(lifeguard.Observer):
            leaks = 0

            def leaked(self, borrow):
                self.leaks += 1

        guard = lifeguard.Lifeguard(observers=[Count()])
    """

    def worker_opened(self, worker: Worker) -> None:
        """All resources are open; units may come."""

    def worker_closed(self, worker: Worker, errors: Sequence[BaseException]) -> None:
        """All resources are closed. *errors* is what their exits raised."""

    def resource_opened(self, resource: Resource[object], seconds: float) -> None:
        """One resource is open."""

    def unit_given_up(self, unit: Unit, age: float) -> None:
        """The worker closed although *unit* was still running, *age* seconds old."""

    def callback_failed(self, lifetime: Lifetime, error: BaseException) -> None:
        """A callback of *lifetime* raised. What the app returned or raised is untouched."""

    def leaked(self, borrow: Borrow) -> None:
        """*borrow* was still out when its unit ended, and was taken back."""


def tell(observers: Iterable[Observer], event: str, *args: object) -> None:
    """Call *event* of every observer."""
    for observer in observers:
        try:
            getattr(observer, event)(*args)
        except Exception:
            logger("worker").exception("observer %r failed at %s", observer, event)


def logger(name: str) -> logging.Logger:
    """``lifeguard.<name>``. Imported when there is something to say: logging costs 11 ms."""
    import logging

    return logging.getLogger(f"lifeguard.{name}")
