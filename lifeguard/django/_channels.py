"""Channels: a websocket is open for hours, so each of its messages is a unit.

The websocket itself has its line to the lanes from the layer, as every request has.
"""

from __future__ import annotations

from channels.consumer import AsyncConsumer

from .._core.clock import now
from .._core.lifetime import OPEN
from ..threads import AsyncJob

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._wrap import Lifeguard


class Message(AsyncJob):
    """The unit of one message to one consumer."""

    __slots__ = ()

    @property
    def name(self) -> str:
        consumer, kind = self.source
        return f"{kind} to {consumer}"


def a_unit_per_message(guard: Lifeguard) -> None:
    """Make each call of each consumer's ``dispatch`` a unit of *guard*."""
    call: Any = AsyncConsumer.__call__
    if hasattr(call, "lifeguard_guard"):
        return

    async def call_guarded(self: Any, scope: Any, receive: Any, send: Any) -> Any:
        if scope["type"] == "lifespan":
            raise ValueError("a consumer has no lifespan")  # before it takes that for a message
        if guard.key not in scope:
            return await call(self, scope, receive, send)
        self.dispatch = _guarded(guard, self.dispatch, type(self).__qualname__)
        try:
            return await call(self, scope, receive, send)
        finally:
            del self.dispatch  # or the consumer would wait for the garbage collector

    call_guarded.lifeguard_guard = guard  # type: ignore[attr-defined]
    AsyncConsumer.__call__ = call_guarded


def _guarded(guard: Lifeguard, dispatch: Any, consumer: str) -> Any:
    current = guard.current

    async def dispatch_unit(message: Any) -> None:
        worker = guard._worker
        if not worker.serving:
            worker = await guard.aworker_for_unit()
        unit = Message()
        unit.source = (consumer, message.get("type", "a message"))
        unit.worker = worker
        unit.started = now()
        unit.state = OPEN
        token = current.set(unit)
        error: BaseException | None = None
        try:
            await dispatch(message)
        except BaseException as exc:
            error = exc
            raise
        finally:
            current.reset(token)
            if isinstance(error, GeneratorExit):
                unit.drop()
            else:
                await unit.aconclude(error)
            error = None

    return dispatch_unit
