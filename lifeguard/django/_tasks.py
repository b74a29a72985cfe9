"""Django's tasks (``django.tasks``, or the package django-tasks) in a worker process.

Such a worker runs no event loop. Django makes one for each async task, and then the async
resources would open and close with each task, while a plain task could not open them at all. So
they open on a loop of their own, in a thread, and async tasks that are units run there.

Tasks of the immediate backend are called by whoever enqueues them, and stay where they are: in
the caller's thread, with the caller's connection.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

from .._core.lifetime import is_async
from .._loop import begin_worker, loop_thread
from ..threads import is_task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._wrap import Lifeguard


def attach(guard: Lifeguard) -> None:
    packages = ["django.tasks"] if importlib.util.find_spec("django.tasks") is not None else []
    if "django_tasks" in sys.modules:  # by INSTALLED_APPS
        packages.append("django_tasks")
    for package in packages:
        cls: Any = importlib.import_module(f"{package}.base").Task
        cls.call = _calling(guard, cls.call)


def _calling(guard: Lifeguard, call: Any) -> Any:
    def call_task(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(cls.__name__ == "ImmediateBackend" for cls in type(self.get_backend()).__mro__):
            return call(self, *args, **kwargs)
        begin_worker(guard)
        if is_task(self.func) and is_async(self.func):
            return loop_thread(guard).run(self.func, args, kwargs)
        return call(self, *args, **kwargs)

    return call_task
