"""The end of a request: ``request_finished`` for each that began, once.

Django sends the signal at the end of its own way through a request, which five of eight endings
leave before. A unit ends in every ending, so its last exit looks whether the signal was sent.

This is also where the adapter reaches into Django: three methods of its handlers are wrapped, and
two of its signals get a ``send`` of ours. Each of these functions says what for.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

from asgiref.sync import SyncToAsync, sync_to_async
from django.core import signals
from django.core.cache import close_caches
from django.core.handlers.asgi import ASGIHandler, ASGIRequest
from django.core.handlers.base import reset_urlconf
from django.core.handlers.wsgi import WSGIHandler
from django.db import close_old_connections, reset_queries
from django.http.response import HttpResponseBase

from .._core.lifetime import Exit
from ._connections import clear_queries

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .._core.lanes import Line
    from .._core.unit import Unit


class Finish(Exit):
    """The last exit of a request's unit: what Django did not finish is finished here."""

    __slots__ = (
        "context",
        "first",
        "home",
        "line",
        "open",
        "outer",
        "response",
        "sender",
        "task",
        "unit",
        "was_closed",
    )

    def __init__(self, unit: Unit, line: Line | None, context: object = None) -> None:
        self.unit = unit
        self.line = line
        self.context = context
        self.open = 0  # request_started less request_finished
        self.first: Callable[[], None] | None = None  # what the first call in a lane takes along
        self.response: Any = None
        self.was_closed = False  # by its own close(), which may have failed
        self.sender: Any = None
        self.home = asyncio.current_task() if unit.awaits else None
        self.task: asyncio.Task[Any] | None = None  # of Django's, which makes the response
        self.outer = request.get()

    @property
    def awaits(self) -> bool:  # type: ignore[override]
        return self.unit.awaits and (self._is_due() or self._is_busy())

    def _is_due(self) -> bool:
        return self.open > 0

    def _is_busy(self) -> bool:
        """Whether a cancelled request has left a call behind, which is still running."""
        return self.line is not None and self.line.is_busy

    def run(self, awaits: bool) -> object:
        if awaits and self.awaits:
            return self._afinish()
        if self._is_due():
            self._finish()
        self._over()
        return None

    def abandon(self) -> bool:
        if self.line is not None and self._is_due():
            self.line.submit(self._finish)
        self._over()
        return True

    def quiet_close(self, fn: Any) -> Callable[[], Any] | None:
        """The response's ``close``, if that is what asgiref wants *fn* to call, and no trip to a
        lane is due for it: there is nothing to close, and nobody but Django listens."""
        try:
            close = fn.args[-1].func
            response = close.__self__
        except (AttributeError, IndexError):
            return None
        if (
            close.__func__ is HttpResponseBase.close
            and all(map(_is_small, response._resource_closers))
            and _only_django_listens(response._handler_class)
        ):
            return close  # type: ignore[no-any-return]
        return None

    def _over(self) -> None:
        if self.line is not None:
            self.line.over()
        elif request.get() is self:
            request.set(self.outer)
        self.response = self.sender = self.context = self.outer = self.task = self.home = None

    async def _afinish(self) -> None:
        # A task of its own: its context is nobody else's.
        request.set(self)
        if self.context is not None:
            SyncToAsync.thread_sensitive_context.set(self.context)  # type: ignore[arg-type]
        try:
            await self._end_task()
            try:
                seconds = self.unit.worker.guard.grace / 2
                await asyncio.wait_for(sync_to_async(self._finish)(), seconds)
            except TimeoutError:  # no lane came: then nothing of this request's is in one
                await sync_to_async(self._finish, thread_sensitive=False)()
        finally:
            self._over()

    async def _end_task(self) -> None:
        """Django before 6.1 leaves its task behind when the server cancels the request."""
        task = self.task
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait((task,), timeout=self.unit.worker.guard.grace / 2)

    def _finish(self) -> None:
        """Close the response, tell the receivers."""
        for finish in (self._close_response, self._tell_receivers):
            try:
                if self._is_due():
                    finish()
            except Exception as exc:
                self.unit.worker.guard.report(self.unit, exc)
        self.open = 0

    def _close_response(self) -> None:
        response = self.response
        if response is None or response.closed:
            return
        if not self.was_closed:
            response.close()  # which sends the signal
            return
        for closer in response._resource_closers:  # its own close() has failed before these
            try:
                closer()
            except Exception as exc:
                self.unit.worker.guard.report(self.unit, exc)
        response._resource_closers.clear()

    def _tell_receivers(self) -> None:
        signals.request_finished.send(sender=self.sender)

    def __str__(self) -> str:
        return "request_finished of Django"


#: The request that runs here. Inherited by its tasks and by the calls that lanes run for it.
request: ContextVar[Finish | None] = ContextVar("lifeguard.django.request", default=None)


def on_started(sender: Any, **_: Any) -> None:
    finish = request.get()
    if finish is not None:
        finish.open += 1
        finish.sender = finish.sender or sender


def on_finished(**_: Any) -> None:
    finish = request.get()
    if finish is not None:
        finish.open -= 1


def start_in_lane() -> None:
    """Let what Django does itself at ``request_started`` ride along with the first call in a lane.

    Its receivers look after the connections of the thread that is about to be used, which took a
    trip to that thread and back. If anybody else listens, it is sent as ever. A lane has closed
    what is old or broken when it comes to another line, so the log of queries is all that is left.
    """
    signal: Any = signals.request_started
    asend: Any = getattr(signal, "asend", None)
    if asend is None or hasattr(asend, "lifeguard_sends"):  # Django 4.2 has none
        return
    quiet = {close_old_connections, reset_queries, on_started}

    async def asend_in_request(sender: Any, **named: Any) -> Any:
        finish = request.get()
        if finish is not None and finish.line is not None and not finish.open:
            receivers, async_receivers = signal._live_receivers(sender)
            if not async_receivers and quiet.issuperset(receivers):
                on_started(sender)
                finish.first = clear_queries
                return []
        return await asend(sender, **named)

    asend_in_request.lifeguard_sends = True  # type: ignore[attr-defined]
    signal.asend = asend_in_request


def _is_small(closer: Any) -> bool:
    """Whether it is the request's own ``close``, without uploaded files."""
    owner = getattr(closer, "__self__", None)
    return type(owner) is ASGIRequest and not hasattr(owner, "_files")


#: What Django does at ``request_finished``. Lanes look after connections themselves.
_quiet = {close_old_connections, close_caches, reset_urlconf, on_finished}


def _only_django_listens(sender: Any) -> bool:
    receivers: Any = signals.request_finished._live_receivers(sender)
    if isinstance(receivers, tuple):  # Django 5.0: sync and async ones
        receivers, others = receivers
        if others:
            return False
    return _quiet.issuperset(receivers)


def send_to_all() -> None:
    """Let every receiver of ``request_finished`` hear of it, also after one that raises.

    What the first of them raised is raised as ever, but after the others were told: one of them
    gives connections back.
    """
    signal: Any = signals.request_finished
    send = signal.send
    asend: Any = getattr(signal, "asend", None)  # from Django 5.0 on
    if hasattr(send, "lifeguard_sends"):
        return

    def send_in_request(sender: Any, **named: Any) -> Any:
        if request.get() is None:
            return send(sender, **named)
        return _first_error(signal.send_robust(sender, **named))

    async def asend_in_request(sender: Any, **named: Any) -> Any:
        if request.get() is None:
            return await asend(sender, **named)
        return _first_error(await signal.asend_robust(sender, **named))

    send_in_request.lifeguard_sends = True  # type: ignore[attr-defined]
    signal.send = send_in_request
    if asend is not None:
        signal.asend = asend_in_request


def _first_error(results: Any) -> Any:
    for _, result in results:
        if isinstance(result, Exception):
            raise result
    return results


def note_responses() -> None:
    """Hear of each response that Django's handlers make, so that it gets closed."""
    get_response_async = ASGIHandler.get_response_async
    send_response, get_response = ASGIHandler.send_response, WSGIHandler.get_response

    async def noting_get_response_async(self: Any, request: Any) -> Any:
        _note_task()
        return await get_response_async(self, request)

    async def noting_send_response(self: Any, response: Any, send: Any) -> None:
        _note(response)
        await send_response(self, response, send)

    def noting_get_response(self: Any, request: Any) -> Any:
        response = get_response(self, request)
        _note(response)
        return response

    if not hasattr(send_response, "lifeguard_notes"):
        noting_send_response.lifeguard_notes = True  # type: ignore[attr-defined]
        ASGIHandler.get_response_async = noting_get_response_async
        ASGIHandler.send_response = noting_send_response
        WSGIHandler.get_response = noting_get_response


def _note_task() -> None:
    finish = request.get()
    if finish is not None:
        task = asyncio.current_task()
        if task is not finish.home:
            finish.task = task


def _note(response: Any) -> None:
    finish = request.get()
    if finish is None or finish.response is not None:
        return
    finish.response = response
    if type(response).close is not HttpResponseBase.close:
        close = response.close

        def noting_close() -> None:
            finish.was_closed = True
            close()

        response.close = noting_close
