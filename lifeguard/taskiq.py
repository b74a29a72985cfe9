"""taskiq: the resources of a worker process, and a unit for every task.

``@lifeguard.task`` under ``@broker.task`` makes a task a unit without any of this. What it cannot
do is open async resources for a plain ``def`` task, which taskiq runs in a thread: by then it is
too late for the loop. So this opens them with the broker and closes them with it.
"""

from __future__ import annotations

import sys

from taskiq import TaskiqEvents, TaskiqMiddleware

from ._core.shield import shielded
from ._wrap import as_resources, guard_of
from .threads import is_task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from taskiq import AsyncBroker, TaskiqMessage

    from ._core.worker import Worker
    from ._wrap import Lifeguard

__all__ = ["Middleware", "install"]


class Middleware(TaskiqMiddleware):
    """Every task of the broker is a unit, in its worker processes.

    Resources open once in each worker process before its first task, and close once after its
    last. *resources* are objects that open and close, besides those that ``@lifeguard.resource``
    declared. *guard* is a :class:`lifeguard.Lifeguard` of one's own.

    Example::

        broker = ListQueueBroker(REDIS).with_middlewares(lifeguard.taskiq.Middleware())
    """

    def __init__(self, *, resources: Iterable[object] = (), guard: Lifeguard | None = None) -> None:
        super().__init__()
        self._guard = guard_of(guard)
        self._resources = [self._guard.adopt(obj) for obj in as_resources(resources)]
        self._worker: Worker | None = None

    def set_broker(self, broker: AsyncBroker) -> None:
        super().set_broker(broker)
        # Before people's own handlers, which may use what is opened here. A middleware's own
        # startup() comes after them.
        broker.event_handlers[TaskiqEvents.WORKER_STARTUP].insert(0, self._open)

    async def _open(self, state: object) -> None:
        for task in self.broker.get_all_tasks().values():
            self._make_unit(task)
        self._worker = await shielded(self._guard.aacquire, self._resources)

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        task = self.broker.find_task(message.task_name)
        if task is not None:  # it may have been declared after the start
            self._make_unit(task)
        return message

    def _make_unit(self, task: Any) -> None:
        func = task.original_func
        if is_task(func):
            return
        task.original_func = unit = self._guard.task(func)
        # Where taskiq has put it for --use-process-pool, which finds a function by its name.
        module, name = sys.modules[func.__module__], func.__name__
        if getattr(module, name, None) is func:
            setattr(module, name, unit)

    async def shutdown(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await self._guard.aleave(worker)


def install(
    broker: AsyncBroker, *, resources: Iterable[object] = (), guard: Lifeguard | None = None
) -> None:
    """Add :class:`Middleware` to *broker*, as its last one."""
    broker.add_middlewares(Middleware(resources=resources, guard=guard))
