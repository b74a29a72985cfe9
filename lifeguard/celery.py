"""Celery: an execution of a task is a unit, a child of the worker is a worker.

``@celery_app.task`` over ``@lifeguard.task`` is enough, and :func:`install` does it for all tasks
of an app. Celery ends its children by ``os._exit``: no ``atexit``, no finalizer of
``multiprocessing`` runs in them. So this module listens to the one signal that every child sends
which is not killed, ``worker_process_shutdown``.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from contextvars import ContextVar

from celery import signals
from celery._state import _task_stack
from celery.app.registry import TaskRegistry

from ._core import ends
from ._core.errors import redact
from ._core.lifetime import is_async
from ._core.observer import logger
from ._core.unit import plumbing
from ._loop import begin_worker, end_worker, loop_thread
from ._wrap import as_resources, guard_of
from .threads import is_task, make_task, mark_task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from typing import Any, ParamSpec, TypeVar, overload

    from celery import Celery

    from ._wrap import Lifeguard

    P = ParamSpec("P")
    R = TypeVar("R")

__all__ = ["fixup", "install", "task"]

if TYPE_CHECKING:

    @overload
    def task(func: Callable[P, Awaitable[R]], /) -> Callable[P, R]: ...
    @overload
    def task(func: Callable[P, R], /) -> Callable[P, R]: ...
    @overload
    def task(*, guard: Lifeguard | None = None) -> Callable[[Callable[P, Any]], Any]: ...


def task(func: Any = None, /, *, guard: Lifeguard | None = None) -> Any:
    """Make each execution of *func* a unit, as :func:`lifeguard.task`; ``async def`` works, too.

    An async task runs on one asyncio loop per worker process, in a thread of its own, where the
    async resources are open. The task's own thread waits for it. What interrupts it (a soft time
    limit, a revoke, the end of the worker) cancels the coroutine, and waits for its end.

    Raises :exc:`TypeError` for what is no function, and :exc:`lifeguard.LifeguardError` when an
    async task is executed under gevent or eventlet, which have no threads to run a loop in.

    Example::

        @celery_app.task
        @lifeguard.celery.task
        async def sync_orders():
            async with db.get().connection() as conn: ...
    """
    if func is None:
        return functools.partial(task, guard=guard)
    guard = guard_of(guard)
    if is_async(func):
        return _task_on_loop(guard, func)
    return guard.task(func)


def install(
    app: Celery, *, guard: Lifeguard | None = None, resources: Iterable[object] = ()
) -> None:
    """Make each execution of each task of *app* a unit, without decorators, async ones too.

    *resources* are objects that open and close, as with :func:`lifeguard.wrap`: opened in each
    child with its first task, closed once at its end, and forgotten by the children where the
    parent had them open already. Celery's own tasks (``celery.chord`` and so on) stay as they
    are, and so do tasks that are units already.

    Example::

        celery_app = Celery(...)
        lifeguard.celery.install(celery_app, resources=[pool])
    """
    guard = guard_of(guard)
    if not isinstance(getattr(app, "_tasks", None), TaskRegistry):
        raise TypeError(f"lifeguard.celery.install() takes a Celery app, not {redact(repr(app))}")
    connect(guard)
    for obj in as_resources(resources):
        guard.define(guard.adopt(obj))
    registry: Any = app._tasks
    kind: Any = type(registry)
    if getattr(kind, "lifeguard_guard", None) is guard:
        return

    def set_item(self: Any, name: str, task: Any) -> None:
        kind.__setitem__(self, name, task)
        _make_unit(guard, task)

    # Every way to make a task ends here, and there is no signal that says so.
    registry.__class__ = type(
        kind.__name__, (kind,), {"__setitem__": set_item, "lifeguard_guard": guard}
    )
    for known in list(registry.values()):
        _make_unit(guard, known)


def fixup(app: Celery) -> object:
    """The same for an app that is being made.

    Example::

        Celery("shop", fixups=[*Celery.builtin_fixups, "lifeguard.celery:fixup"])
    """
    install(app)
    return sys.modules[__name__]


def _make_unit(guard: Lifeguard, task: Any) -> None:
    """Make ``task.run`` a unit, or what autoretry has put behind it."""
    if task.name.startswith("celery."):
        return
    where = "_orig_run" if hasattr(task, "_orig_run") else "run"
    run = getattr(task, where)
    _refuse_to_forget(task)
    if not is_task(run):
        made = _task_on_loop(guard, run) if is_async(run) else make_task(guard, run)
        setattr(task, where, made)


def prepare(guard: Lifeguard, made: Any, func: Any) -> None:
    """What Celery needs to know of *made*, which ``@lifeguard.task`` has made of *func*."""
    connect(guard)
    try:
        # Celery checks the arguments of delay() against it.
        made.__signature__ = inspect.signature(func)
    except (TypeError, ValueError):
        pass


# -- async tasks ----------------------------------------------------------------------------------


def _task_on_loop(guard: Lifeguard, func: Any) -> Any:
    """*func* as a sync function, which waits for the coroutine. To Celery it must look like one."""
    on_loop = make_task(guard, func)

    @functools.wraps(func)
    def lifeguard_task(*args: Any, **kwargs: Any) -> Any:
        current = _task_stack.top
        if current is None:
            return loop_thread(guard).run(on_loop, args, kwargs)
        requests = _requests(current)
        token = requests.carried.set(requests.top)
        try:
            return loop_thread(guard).run(on_loop, args, kwargs)
        finally:
            requests.carried.reset(token)

    mark_task(guard, lifeguard_task, func)
    prepare(guard, lifeguard_task, func)
    return lifeguard_task


class _Requests:
    """A task's stack of requests, in whose top its coroutine sees the request of its execution.

    Celery keeps the stack per thread, and the coroutine runs in another one.
    """

    def __init__(self, stack: Any) -> None:
        self.stack_of_thread = stack
        self.carried: ContextVar[Any] = ContextVar("lifeguard.celery.request", default=None)
        self.push = stack.push
        self.pop = stack.pop

    @property
    def top(self) -> Any:
        top = self.stack_of_thread.top
        return self.carried.get() if top is None else top

    @property
    def stack(self) -> Any:
        return self.stack_of_thread.stack

    def __len__(self) -> int:
        return len(self.stack_of_thread)


def _requests(task: Any) -> _Requests:
    stack = task.request_stack
    if not isinstance(stack, _Requests):
        stack = task.request_stack = _Requests(stack)
    return stack


# -- the worker -----------------------------------------------------------------------------------

_guards: dict[str, Lifeguard] = {}
_POOLS = ("prefork", "processes", "threads", "thread", "solo", "gevent", "eventlet")


def connect(guard: Lifeguard) -> None:
    """Let the processes of Celery's workers begin and end what *guard* has open in them."""
    if guard.key in _guards:
        return
    if not _guards:
        plumbing.update(("celery", "billiard", "kombu"))
        signals.worker_init.connect(_on_worker, dispatch_uid="lifeguard")
        signals.worker_process_init.connect(_on_process, dispatch_uid="lifeguard")
    _guards[guard.key] = guard


def _on_worker(sender: Any, **_: Any) -> None:
    """A worker starts, and will fork its children if it is to have any. Nothing is opened here."""
    _on_process()
    pool = sender.pool_cls
    pool = pool if isinstance(pool, str) else pool.__module__
    if pool.rpartition(".")[2] not in _POOLS:
        logger("worker").warning(
            "Celery's pool %r is not one that lifeguard knows (%s): each task is a unit, and "
            "what is open closes at the end of the process, if Python sees that.",
            pool,
            "eventlet, gevent, prefork, solo, threads",
        )
    for task in list(sender.app.tasks.values()):
        _refuse_to_forget(task)


def _refuse_to_forget(task: Any) -> None:
    """Let a task fail with a word that Celery would call, and whose coroutine it would drop."""
    run = getattr(task, "_orig_run", task.run)
    if not (is_task(run) and is_async(run)):
        return

    @functools.wraps(run)
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"the task {task.name!r} is async, and Celery awaits nothing: decorate it with "
            "@lifeguard.celery.task instead of @lifeguard.task"
        )

    task.run = refuse


def _on_process(**_: Any) -> None:
    """In each process that runs tasks, or will be forked for it."""
    for signal, receiver in (
        (signals.worker_process_shutdown, _on_end_of_child),
        (signals.worker_shutdown, _on_end_of_worker),
    ):
        signal.disconnect(dispatch_uid="lifeguard")
        signal.connect(receiver, dispatch_uid="lifeguard")  # the last: others may use what is open
    for guard in _guards.values():
        begin_worker(guard)


def _on_end_of_child(**_: Any) -> None:
    ends.run(os.getpid())  # the very last that Python does here


def _on_end_of_worker(**_: Any) -> None:
    for guard in _guards.values():
        end_worker(guard)
