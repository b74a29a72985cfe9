"""Threads and tasks: one job, one unit, ended inside the job.

Clean-up that belongs to a thread has to run in it, and in the job itself: a done-callback of a
fast job runs in the thread that submitted it. This is also the file to copy for a new host: open
the worker when the process is ready, bracket each piece of work with a unit.
"""

from __future__ import annotations

import concurrent.futures
import contextvars
import functools
import sys
import weakref

from ._core.clock import now
from ._core.errors import redact
from ._core.lifetime import CLOSED, OPEN, describe, is_async
from ._core.unit import Unit, here

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from concurrent.futures import Future
    from typing import Any, ParamSpec, TypeVar

    from ._core.guard import Guard
    from ._core.worker import Worker

    P = ParamSpec("P")
    R = TypeVar("R")

__all__ = ["ThreadPoolExecutor", "guard_executor"]


class Job(Unit):
    """The unit of one call of a task, or of one job of an executor."""

    __slots__ = ()

    awaits = False


class LoopJob(Job):
    """The unit of a job of an event loop's own executor.

    People park endless loops there. Without lifeguard a server would not wait for one at its end,
    so neither does the worker, unless the job holds something.
    """

    __slots__ = ()

    awaited = False


class AsyncJob(Job):
    """The unit of one call of an async task."""

    __slots__ = ()

    awaits = True


def make_task(guard: Guard, func: Any) -> Any:
    """See :meth:`lifeguard.task`. Two hot paths: see bench/ before you touch them."""
    _check_task(guard, func)
    current = guard.current
    set_current, reset_current = current.set, current.reset

    if is_async(func):

        @functools.wraps(func)
        async def lifeguard_task(*args: Any, **kwargs: Any) -> Any:
            worker = guard._worker
            if not worker.serving:
                worker = await guard.aworker_for_unit()
            unit = AsyncJob()
            unit.state = OPEN
            unit.source = func
            unit.worker = worker
            unit.started = now()
            token = set_current(unit)
            try:
                result = await func(*args, **kwargs)
            except GeneratorExit:
                unit.state = CLOSED
                unit.drop()
                raise
            except BaseException as exc:
                reset_current(token)
                unit.state = CLOSED
                if unit:
                    await unit.aconclude(exc)
                raise
            reset_current(token)
            unit.state = CLOSED
            if unit:
                await unit.aconclude(None)
            return result

        return mark_task(guard, lifeguard_task, func)

    @functools.wraps(func)
    def lifeguard_task_sync(*args: Any, **kwargs: Any) -> Any:
        worker = guard._worker
        if not worker.serving:
            worker = guard.worker_for_unit()
        unit = Job()
        unit.state = OPEN
        unit.source = func
        unit.worker = worker
        unit.started = now()
        token = set_current(unit)
        try:
            result = func(*args, **kwargs)
        except BaseException as exc:
            reset_current(token)
            unit.state = CLOSED
            if unit:
                unit.conclude(exc)
            raise
        reset_current(token)
        unit.state = CLOSED
        if unit:
            unit.conclude(None)
        return result

    return mark_task(guard, lifeguard_task_sync, func)


def mark_task(guard: Guard, made: Any, func: Any) -> Any:
    """Note that each call of *made* is a unit of *guard*, and that *func* is in it."""
    made.lifeguard_key = guard.key
    made.lifeguard_func = func
    return made


def is_task(func: Any) -> bool:
    """Whether each call of *func* is a unit already."""
    return isinstance(getattr(func, "lifeguard_key", None), str)


#: How task queues call what sends a task: an object that has one of them is a task already.
_SENDS = ("delay", "apply_async", "send", "kiq", "defer", "enqueue", "schedule", "call_local")


def _check_task(guard: Guard, func: Any) -> None:
    code = getattr(getattr(func, "__func__", func), "__code__", None)
    if isinstance(func, (staticmethod, classmethod)):
        raise TypeError(
            f"@lifeguard.task cannot see into @{type(func).__name__}: put "
            f"@{type(func).__name__} above @lifeguard.task"
        )
    if isinstance(func, type):
        raise TypeError(
            f"@lifeguard.task takes a function, not the class {func.__qualname__}: decorate the "
            "method that does the work"
        )
    if type(func) is not type(_check_task):
        for name in _SENDS:
            if callable(getattr(func, name, None)):
                raise TypeError(
                    f"@lifeguard.task was given the task {redact(repr(func))}, which has a "
                    f".{name}() already: put @lifeguard.task directly above the function, and the "
                    "decorator of the task queue above that"
                )
    elif getattr(func, "lifeguard_key", None) == guard.key:
        raise TypeError(
            f"@lifeguard.task was applied to {describe(func)} twice: each call is a unit "
            "already. Take one of the two away"
        )
    if not callable(func):
        raise TypeError(f"@lifeguard.task takes a function, not {redact(repr(func))}")
    if code is not None and code.co_flags & 0x220:  # CO_GENERATOR, CO_ASYNC_GENERATOR
        raise TypeError(
            f"@lifeguard.task cannot guard the generator {describe(func)}: its body runs whenever "
            "somebody asks for the next item. Put `with lifeguard.unit():` inside it"
        )


class ThreadPoolExecutor(concurrent.futures.ThreadPoolExecutor):
    """``concurrent.futures.ThreadPoolExecutor``, and each job is a unit.

    What a job borrowed is back before its future is done, and its callbacks ran in its thread.
    With *propagate_context* a job sees the context variables of whoever submitted it, as with
    ``asyncio.to_thread``. Everything else is as in the standard library.

    Example::

        with lifeguard.ThreadPoolExecutor(max_workers=8) as executor:
            executor.map(import_row, rows)
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        guard: Guard | None = None,
        propagate_context: bool = False,
    ) -> None:
        if guard is None:
            from . import _default as guard
        super().__init__(max_workers, thread_name_prefix, initializer, initargs)
        self._guard = guard
        self._propagate = propagate_context

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run ``fn(*args, **kwargs)`` in a thread, as one unit. See the standard library."""
        job: Any = run_job
        if not self._propagate:
            return super().submit(job, self._guard, fn, args, kwargs)
        context = contextvars.copy_context()
        return super().submit(context.run, job, self._guard, fn, args, kwargs)


def run_job(guard: Guard, fn: Callable[..., R], args: Any, kwargs: Any, kind: type[Job] = Job) -> R:
    """Call ``fn(*args, **kwargs)`` as one unit, which is over before anybody has the result."""
    worker = guard._worker
    if not worker.serving:
        worker = guard.worker_for_unit()
    outer = guard.current.get()
    unit = kind()
    unit.state = OPEN
    unit.source = fn
    unit.worker = worker
    unit.started = now()
    token = guard.current.set(unit)
    outer_job, here.job = here.job, unit
    try:
        result = fn(*args, **kwargs)
    except BaseException as exc:
        _end_job(unit, outer, exc)
        raise
    else:
        _end_job(unit, outer, None)
        return result
    finally:
        here.job = outer_job
        guard.current.reset(token)
        fn = args = kwargs = None  # type: ignore[assignment]  # no cycle through a traceback


def _end_job(unit: Job, outer: Unit | None, exc: BaseException | None) -> None:
    if unit and outer is not None and outer.state is OPEN:
        # A request that borrows in one job and gives back in another holds it, not the job.
        unit.give_to(outer)
    unit.conclude(exc)


def guard_default_executor(worker: Worker) -> None:
    """Make the jobs of this loop's default executor units: to_thread, run_in_executor(None).

    An executor that somebody has set already stays, and its ``submit`` is guarded.
    """
    loop = worker.loop
    if loop is None:
        return
    executor = getattr(loop, "_default_executor", None) or _hidden_executor(loop)
    if executor is None:
        if loop in _guarded_loops:
            return
        # What the loop would make at the first job, made now.
        executor = concurrent.futures.ThreadPoolExecutor(thread_name_prefix="asyncio")
        loop.set_default_executor(executor)
    _guarded_loops.add(loop)
    guard_jobs(worker.guard, executor, LoopJob)


def _hidden_executor(loop: asyncio.AbstractEventLoop) -> concurrent.futures.Executor | None:
    """uvloop keeps its default executor to itself, and replaces it without a word."""
    import gc

    for obj in gc.get_referents(loop):
        if isinstance(obj, concurrent.futures.Executor):
            return obj
    return None


_guarded_loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()


def guard_executor(executor: Any, guard: Guard | None = None) -> None:
    """Make the jobs of an executor that somebody else made units, from now on.

    For thread pools that a library brings along. Raises :exc:`TypeError` for what is no executor,
    and for a process pool, whose jobs run where nothing of this can be seen.

    Example::

        lifeguard.threads.guard_executor(scheduler_executor)
    """
    if not isinstance(executor, concurrent.futures.Executor):
        raise TypeError(f"guard_executor() takes an executor, not {executor!r}")
    processes = sys.modules.get("concurrent.futures.process")
    if processes is not None and isinstance(executor, processes.ProcessPoolExecutor):
        raise TypeError(
            f"guard_executor() takes an executor of threads, not {executor!r}: decorate the "
            "functions that are submitted to it with @lifeguard.task"
        )
    from . import _default

    guard_jobs(guard or _default, executor, Job)


def guard_jobs(guard: Guard, executor: Any, kind: type[Job]) -> None:
    """Make the jobs of *executor* units of this *kind*."""
    submit = executor.submit
    if getattr(submit, "lifeguard_key", None) == guard.key:
        return

    @functools.wraps(submit)
    def submit_unit(fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        if kind is LoopJob and not guard._worker.serving:
            return submit(fn, *args, **kwargs)  # nothing is open, so nothing can be left behind
        context = getattr(getattr(fn, "func", None), "__self__", None)
        if isinstance(context, contextvars.Context) and not args and not kwargs:
            # asyncio.to_thread: partial(context.run, func, ...). The unit has to be inside of it.
            func, *rest = fn.args
            run_it: Any = run_job
            return submit(context.run, run_it, guard, func, rest, fn.keywords, kind)
        return submit(run_job, guard, fn, args, kwargs, kind)

    submit_unit.lifeguard_key = guard.key  # type: ignore[attr-defined]
    executor.submit = submit_unit


def guard_worker_threads(guard: Guard) -> None:
    """Let each call that anyio runs in a thread end there what belongs to that thread.

    FastAPI's and Starlette's plain ``def`` endpoints are such calls. They are parts of the request,
    whose unit stays the current one. anyio has no hook for them and no executor.
    """
    for key, ref in list(_with_threads.items()):
        if ref() is None:
            del _with_threads[key]
    _with_threads[guard.key] = weakref.ref(guard)
    backend: Any = getattr(sys.modules.get("anyio._backends._asyncio"), "AsyncIOBackend", None)
    run = getattr(backend, "run_sync_in_worker_thread", None)
    if run is None or hasattr(run, "lifeguard"):
        return

    @functools.wraps(run.__func__)
    async def run_part(cls: Any, func: Any, args: Any, *more: Any, **options: Any) -> Any:
        for ref in list(_with_threads.values()):
            guard = ref()
            if guard is not None and guard._worker.serving:
                func, args = _run_part, (guard, func, args)
        return await run.__func__(cls, func, args, *more, **options)

    run_part.lifeguard = True  # type: ignore[attr-defined]
    backend.run_sync_in_worker_thread = classmethod(run_part)


_with_threads: dict[str, weakref.ref[Guard]] = {}


def _run_part(guard: Guard, func: Any, args: Any) -> Any:
    """Call ``func(*args)`` as a part of a unit that lives elsewhere, with an end in this thread."""
    part = LoopJob()
    part.state = OPEN
    part.source = func
    part.worker = guard._worker
    part.started = now()
    outer_job, here.job = here.job, part
    try:
        result = func(*args)
    except BaseException as exc:
        part.conclude(exc)
        raise
    else:
        part.conclude(None)
        return result
    finally:
        here.job = outer_job
        func = args = None
