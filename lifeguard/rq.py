"""RQ: a job is a unit, and the process that runs it is a worker.

RQ forks a process for each job, which ends by ``os._exit``: no ``atexit``, no finalizer runs in it.
So these worker classes close what is open there, after the job and before that::

    rq worker --worker-class lifeguard.rq.Worker

What the parent had open at the fork is forgotten in the children, as after any fork. Resources open
in each child with its job; where that costs too much, ``SimpleWorker`` keeps them from job to job.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import rq

from ._core import ends
from ._core.lifetime import is_async
from ._loop import begin_worker, end_worker, green, loop_thread
from ._wrap import guard_of
from .threads import is_task, make_task, run_job

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rq.job import Job

    from ._wrap import Lifeguard

    _Base = rq.worker.BaseWorker
else:
    _Base = object

__all__ = ["SimpleWorker", "Worker", "WorkerMixin"]


class WorkerMixin(_Base):
    """Put it in front of any worker class of RQ: each job is a unit, and its process closes.

    Async jobs run on one asyncio loop per process, where async resources are open, instead of on a
    loop of their own each. A job timeout cancels them, and waits for their end.

    Example::

        class Worker(lifeguard.rq.WorkerMixin, rq.worker.HerokuWorker):
            guard = my_guard
    """

    guard: Lifeguard | None = None
    """A :class:`lifeguard.Lifeguard` of one's own. None: the default one."""

    resources: Iterable[object] = ()
    """Objects that open and close, besides those that ``@lifeguard.resource`` declared."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        guard = self._guard()
        for obj in self.resources:
            guard.define(guard.adopt(obj))
        super().__init__(*args, **kwargs)

    def perform_job(self, job: Job, *args: Any, **kwargs: Any) -> bool:
        guard = self._guard()
        begin_worker(guard)
        execute = job._execute

        def execute_as_unit() -> Any:
            func = job.func
            if func is None:
                return execute()  # which says so
            return _run(guard, func, job.args, job.kwargs)

        job._execute = execute_as_unit  # type: ignore[method-assign]
        try:
            return super().perform_job(job, *args, **kwargs)
        finally:
            del job._execute  # the class has its own
            if self.is_horse:
                ends.run(os.getpid())

    def setup_work_horse_signals(self) -> None:
        super().setup_work_horse_signals()  # type: ignore[no-untyped-call]
        # RQ lets SIGTERM kill this process on the spot. It is its main thread, and the job's.
        if self._guard().handle_sigterm:
            ends.take_sigterm()

    def teardown(self) -> None:
        end_worker(self._guard())
        super().teardown()  # type: ignore[no-untyped-call]

    def _guard(self) -> Lifeguard:
        return guard_of(self.guard)


def _run(guard: Lifeguard, func: Any, args: Any, kwargs: Any) -> Any:
    if is_async(func) and green() is None:
        func = func if is_task(func) else make_task(guard, func)
        return loop_thread(guard).run(func, args, kwargs)
    result = func(*args, **kwargs) if is_task(func) else run_job(guard, func, args, kwargs)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


class Worker(WorkerMixin, rq.Worker):
    """RQ's ``Worker``, a process per job: each closes what its job had open."""


class SimpleWorker(WorkerMixin, rq.SimpleWorker):
    """RQ's ``SimpleWorker``, all jobs in one process: it closes when it ends."""


if hasattr(rq, "SpawnWorker"):  # RQ 2.2 and later

    class SpawnWorker(WorkerMixin, rq.SpawnWorker):
        """RQ's ``SpawnWorker``, a new Python per job: each closes what its job had open."""

    __all__ += ["SpawnWorker"]
