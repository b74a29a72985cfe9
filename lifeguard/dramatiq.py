"""Dramatiq: a message is a unit, a worker process is a worker.

The unit is a wrap of the actor's function, not a pair of hooks around it: hooks of Dramatiq that
fail are logged and passed over, and a time limit would end a message between them and the function.
Async actors run on the event loop of Dramatiq's own ``AsyncIO`` middleware, so the async resources
open there, whichever of the two middlewares was added first.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

import dramatiq
from dramatiq import asyncio as dramatiq_asyncio

from ._loop import end_worker, green, loop_thread
from ._wrap import as_resources, guard_of
from .threads import is_task, make_task

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._core.worker import Worker
    from ._wrap import Lifeguard

__all__ = ["Middleware", "install"]


class Middleware(dramatiq.Middleware):
    """Makes each message a unit that ends in its thread, and closes with the worker process.

    Resources open in each worker process with its first message. They close when Dramatiq has
    stopped its threads. *resources* are objects that open and close, besides those that
    ``@lifeguard.resource`` declared; *guard* is a :class:`lifeguard.Lifeguard` of one's own. Actors
    that are units already (``@dramatiq.actor`` over ``@lifeguard.task``) stay as they are.

    Example::

        broker = RedisBroker()
        broker.add_middleware(lifeguard.dramatiq.Middleware())
        dramatiq.set_broker(broker)
    """

    def __init__(self, *, resources: Iterable[object] = (), guard: Lifeguard | None = None) -> None:
        self.guard: Lifeguard = guard_of(guard)
        for obj in as_resources(resources):
            self.guard.define(self.guard.adopt(obj))

    # It is sent for the actors that were there before this middleware, too.
    def after_declare_actor(self, broker: dramatiq.Broker, actor: dramatiq.Actor[Any, Any]) -> None:
        actor.fn = _as_unit(self.guard, actor.fn)

    def before_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        if not green():
            self.guard.home = _Home(self.guard)

    def after_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        thread: Any = dramatiq_asyncio.get_event_loop_thread()
        if thread is None:
            return
        stop = thread.stop

        @functools.wraps(stop)
        def close_and_stop() -> None:
            end_worker(self.guard)  # here, wherever in the list of middlewares this one is
            stop()

        thread.stop = close_and_stop

    def after_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        end_worker(self.guard)


def install(
    broker: dramatiq.Broker, *, resources: Iterable[object] = (), guard: Lifeguard | None = None
) -> None:
    """Add :class:`Middleware` to *broker*. Actors that it has already become units, too."""
    if not hasattr(broker, "add_middleware"):
        raise TypeError(f"lifeguard.dramatiq.install() takes a broker of Dramatiq, not {broker!r}")
    broker.add_middleware(Middleware(resources=resources, guard=guard))


class _Home:
    """Where a message that is sync opens the worker: on Dramatiq's loop, if it runs one."""

    def __init__(self, guard: Lifeguard) -> None:
        self.guard = guard

    def worker(self) -> Worker:
        thread: Any = dramatiq_asyncio.get_event_loop_thread()
        if thread is None:
            return loop_thread(self.guard).worker()
        worker: Worker = thread.run_coroutine(self.guard.aacquire(hold=False))
        return worker


def _as_unit(guard: Lifeguard, fn: Any) -> Any:
    awaited = getattr(fn, "__wrapped__", None)
    if (
        getattr(fn, "__globals__", None) is vars(dramatiq_asyncio)
        and awaited is not None
        and inspect.iscoroutinefunction(awaited)
    ):  # what an async actor became: the unit belongs inside, on the loop
        if is_task(awaited):
            return fn
        return dramatiq_asyncio.async_to_sync(make_task(guard, awaited))
    return fn if is_task(fn) else make_task(guard, fn)
