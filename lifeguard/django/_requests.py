"""Requests on lanes: what stands around a wrapped app, inside of each unit.

Under ASGI each request and websocket gets a line to the lanes, in the place where asgiref looks
for a thread. Under WSGI it has the server's thread already, and only bodies that stream need care.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from _thread import get_ident
from concurrent.futures import Future
from pathlib import Path

from asgiref.sync import AsyncToSync, SyncToAsync

from .._core.lanes import Line
from .._wrap import Layer
from ..threads import Job, run_job
from ._connections import tidy_thread
from ._finish import Finish, request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextvars import ContextVar
    from typing import Any

    from .._core.lanes import Lanes
    from .._core.unit import Unit
    from .._wrap import Lifeguard


class LateJob(Job):
    """The unit of what a task does in a lane after its request has ended."""

    __slots__ = ()


class RequestLine(Line):
    """The line of one request or websocket, and of the tasks that outlive it."""

    __slots__ = ("finish", "guard")

    finish: Finish | None  # until it is over
    guard: Lifeguard

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        finish = self.finish
        if finish is None:  # a task that outlives the request
            return super().submit(run_job, self.guard, fn, args, kwargs, LateJob)
        if finish.response is not None:
            close = finish.quiet_close(fn)
            if close is not None:
                return _done(close)
        if finish.first is not None:
            first, finish.first = finish.first, None
            return super().submit(_after, first, fn, args, kwargs)
        return super().submit(fn, *args, **kwargs)

    def made_here(self) -> bool:
        finish = self.finish
        return finish is not None and is_own(finish.unit.source)  # the scope

    def over(self) -> None:
        self.finish = None
        super().over()


def _after(first: Callable[[], None], fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    first()
    return fn(*args, **kwargs)


def _done(call: Callable[[], Any]) -> Future[Any]:
    future: Future[Any] = Future()
    try:
        future.set_result(call())
    except Exception as exc:
        future.set_exception(exc)
    try:
        return future
    finally:
        del future  # its exception has this frame in its traceback


class Context:
    """Stands for asgiref's ThreadSensitiveContext, whose executor is the request's line.

    Django's own then finds one and does nothing. It is never left: tasks that outlive the request
    have it in their contexts, and reach the lanes by it.
    """

    __slots__ = ("__weakref__",)

    _exited = False  # asgiref 3.13 asks


class DjangoLayer(Layer):
    """What stands around a wrapped app, inside of each unit. Not only Django's own handler: the
    middleware and consumers beside it use the same connections."""

    def __init__(self, guard: Lifeguard, lanes: Callable[[], Lanes]) -> None:
        self.guard = guard
        self.lanes = lanes

    def asgi(self, app: Any) -> Any:
        guard, lanes_of_worker = self.guard, self.lanes
        key = guard.key
        executors: Any = SyncToAsync.context_to_thread_executor
        sensitive: ContextVar[Any] = SyncToAsync.thread_sensitive_context

        async def django_asgi(scope: Any, receive: Any, send: Any) -> None:
            unit: Unit = scope[key]
            token = None
            if asyncio.get_running_loop() in AsyncToSync.loop_thread_executors:
                # Below async_to_sync, as in an async TestCase: its thread is the place for all.
                finish = Finish(unit, None)
            else:
                line = RequestLine(lanes_of_worker(), unit)
                line.guard = guard
                context = Context()
                executors[context] = line
                line.finish = finish = Finish(unit, line, context)
                token = sensitive.set(context)
            unit.append(finish)
            outer = request.set(finish)
            try:
                await app(scope, receive, send)
            finally:
                try:
                    request.reset(outer)
                    if token is not None:
                        sensitive.reset(token)
                except ValueError:  # a coroutine that is thrown away ends in another context
                    pass

        return django_asgi

    def wsgi(self, app: Any) -> Any:
        key = self.guard.key

        def django_wsgi(environ: Any, start_response: Any) -> Any:
            finish = Finish(environ[key], None)
            environ[key].append(finish)
            request.set(finish)  # until the unit ends: the body is closed after this returns
            body = app(environ, start_response)
            if getattr(body, "streaming", False):
                return _Stream(body, finish)
            return body

        return django_wsgi


class _Stream:
    """A streaming response under WSGI, whichever thread the server reads it in.

    What the view has used is given back before the first chunk. A thread that is not the view's
    is cleaned after each chunk: its locals may be gone by the next (granian before 2.2.4).
    """

    def __init__(self, response: Any, finish: Finish) -> None:
        self.response = response
        self.finish = finish
        self.thread = get_ident()
        tidy_thread()

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.response:
            if get_ident() != self.thread:
                tidy_thread()
            yield chunk

    def close(self) -> None:
        outer = request.get()
        request.set(self.finish)
        try:
            self.response.close()
        finally:
            request.set(outer)


def is_own(scope: Any) -> bool:
    """Whether this very process has made the request: its other end is one of our sockets."""
    client = scope.get("client")
    if not client or not client[1]:
        return False
    try:
        numbers = [int(path.name) for path in Path("/dev/fd").iterdir()]
    except OSError:
        return False
    for number in numbers:
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as other:
                if other.getsockname()[:2] == tuple(client[:2]):
                    return True
        except (OSError, ValueError):
            continue
    return False
