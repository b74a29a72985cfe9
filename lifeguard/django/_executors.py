"""Jobs of executors that somebody else makes: units, where LIFEGUARD["EXECUTORS"] asks for it.

The standard library has no hook for the job of a thread pool. This reaches into its work items,
so it is off unless asked for.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import thread as standard

from asgiref.sync import SyncToAsync

from ..threads import LoopJob, run_job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._wrap import Lifeguard


def guard_all(guard: Lifeguard) -> None:
    """Make each job of each ThreadPoolExecutor of this process a unit of *guard*."""
    item_class: Any = standard._WorkItem
    run = item_class.run

    def run_unit(self: Any, *args: Any) -> Any:
        if hasattr(self, "task"):  # Python 3.14
            fn, fn_args, fn_kwargs = self.task
            if not _has_its_own(fn, fn_args):
                self.task = (run_job, (guard, fn, fn_args, fn_kwargs, LoopJob), {})
        elif not _has_its_own(self.fn, self.args):
            self.args = (guard, self.fn, self.args, self.kwargs, LoopJob)
            self.fn, self.kwargs = run_job, {}
        return run(self, *args)

    if not hasattr(run, "lifeguard_guard"):
        run_unit.lifeguard_guard = guard  # type: ignore[attr-defined]
        item_class.run = run_unit


def _has_its_own(fn: Any, args: Any) -> bool:
    """Whether it is a unit already, or a part of one: asgiref runs a request's calls in a thread
    of the request's, and what one call opens, the next one uses."""
    if fn is run_job or args[:1] == (run_job,):
        return True
    if fn is asyncio.run:  # asgiref does so: a loop, whose tasks are the work
        return True
    owner = getattr(getattr(fn, "func", None), "__self__", None)
    return isinstance(owner, SyncToAsync) and owner._thread_sensitive
