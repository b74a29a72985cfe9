"""lifeguard: connection pools that open once, close once and never leak.

Two nested lifetimes carry everything: the **Worker** (a process that does work; resources are
opened once in it) and the **Unit** (one piece of work; what it borrowed is back at its end).

    import lifeguard

    app = lifeguard.wrap(app, resources=[pool])

The functions here are the methods of one default :class:`Lifeguard`. Make your own for options,
tests and libraries.
"""

from __future__ import annotations

from ._core.errors import (
    ClosedError,
    CloseErrors,
    LeakWarning,
    LifeguardError,
    NotOpenError,
    UnclosedWarning,
    WrongProcessError,
)
from ._core.observer import Observer
from ._core.resource import Resource
from ._core.unit import Unit
from ._core.worker import Worker
from ._wrap import Lifeguard

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import asgi as asgi
    from . import wsgi as wsgi
    from .threads import ThreadPoolExecutor as ThreadPoolExecutor

__version__ = "0.1.0.dev0"

__all__ = [
    "CloseErrors",
    "ClosedError",
    "LeakWarning",
    "Lifeguard",
    "LifeguardError",
    "NotOpenError",
    "Observer",
    "Resource",
    "ThreadPoolExecutor",
    "UnclosedWarning",
    "Unit",
    "Worker",
    "WrongProcessError",
    "arelease",
    "callback",
    "lifespan",
    "release",
    "resource",
    "task",
    "unit",
    "worker",
    "wrap",
]

_default = Lifeguard()

arelease = _default.arelease
callback = _default.callback
lifespan = _default.lifespan
release = _default.release
resource = _default.resource
task = _default.task
unit = _default.unit
worker = _default.worker
wrap = _default.wrap

_lazy = {"ThreadPoolExecutor": "threads", "asgi": "", "wsgi": ""}


if not TYPE_CHECKING:  # where it would make any name at all look right

    def __getattr__(name: str) -> object:
        # What needs more than the core is imported when it is asked for, once.
        if name not in _lazy:
            raise AttributeError(f"module 'lifeguard' has no attribute {name!r}")
        import importlib

        module = _lazy[name]
        value: object = importlib.import_module(f"lifeguard.{module or name}")
        if module:
            value = getattr(value, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_lazy})
