"""ASGI: one unit per request and websocket, and a lifespan that always runs.

The way of a request is one closure: set a context variable, await the app, say closed. A unit ends
when the app callable returns or raises, which is the only thing that happens in every ending on
every server (a disconnect is not reported by most, and cancellations come from some).

The lifespan is the protocol's ``lifespan`` scope and nothing else: resources open before the app's
own startup and close after its shutdown. An app that has none is answered for. A server that
never sends it is stood in for, at the first request and at the end of the process.
"""

from __future__ import annotations

from contextvars import ContextVar

from ._core.clock import now
from ._core.errors import ClosedError, explain
from ._core.lifetime import CLOSED, OPEN, Call
from ._core.observer import logger
from ._core.shield import Keeper, Latch, current_task, running_loop, shielded, spawn
from ._core.unit import Unit
from ._core.worker import Worker, failed_to_open

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping
    from typing import Any

    from ._core.resource import Resource
    from ._wrap import Lifeguard

    Message = MutableMapping[str, Any]
    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

__all__ = ["Middleware"]


class Request(Unit):
    """The unit of one HTTP request or websocket."""

    __slots__ = ()

    awaits = True

    @property
    def name(self) -> str:
        scope = self.source
        if scope is None:
            return "an ended request"
        return f"{scope.get('method', scope['type'].upper())} {scope.get('path', '')}"


class Middleware:
    """``lifeguard.wrap`` where a framework wants a middleware class.

    Example::

        app.add_middleware(lifeguard.asgi.Middleware)

    *guard* is the default one of ``lifeguard`` unless given; *resources* are as in
    :func:`lifeguard.wrap`.
    """

    __slots__ = ("_app", "app")

    def __init__(
        self, app: ASGIApp, *, guard: Lifeguard | None = None, resources: Iterable[object] = ()
    ) -> None:
        from . import _default

        guard = guard or _default
        self.app = app
        self._app = wrap_asgi(app, guard, [guard.adopt(obj) for obj in resources])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def wrap_asgi(app: ASGIApp, guard: Lifeguard, resources: list[Resource[Any]]) -> ASGIApp:
    """Guard an ASGI 3 app. The closure is the hot path: see bench/ before you touch it."""
    guard.has_front_door = True
    key = guard.key
    get_current, set_current = guard.current.get, guard.current.set
    run = _cancelled_with_client(app) if guard.cancel_on_disconnect else app
    worker = Worker(guard, awaits=True)  # not open, so that nothing passes the front door unseen

    def opened(by: Worker) -> None:
        nonlocal run, worker
        run = life.run
        worker = by

    life = _Life(app, run, guard, resources, opened)

    async def lifeguard_asgi(scope: Scope, receive: Receive, send: Send) -> None:
        if (
            not worker.serving
            or key in scope
            or scope["type"] != "http"
            or get_current() is not None
        ):
            await life.front_door(scope, receive, send)
            return
        unit = Request()
        unit.state = OPEN
        unit.source = scope
        unit.worker = worker
        unit.started = worker.tick
        scope[key] = unit
        # Not reset at the end, which would cost as much as all the rest: a closed unit says so
        # itself, and where there is another one outside, the request came by the front door.
        set_current(unit)
        try:
            await run(scope, receive, send)
        except GeneratorExit:  # the coroutine is thrown away: nothing can be awaited any more
            unit.state = CLOSED
            if unit:
                unit.drop()
            unit.source = None
            raise
        except BaseException as exc:
            unit.state = CLOSED
            if unit:
                await unit.aconclude(exc)
            unit.source = None
            raise
        unit.state = CLOSED
        if unit:
            await unit.aconclude(None)
        unit.source = None  # the scope has the unit, so the unit lets go of the scope

    lifeguard_asgi.lifeguard_guard = guard  # type: ignore[attr-defined]
    lifeguard_asgi.__qualname__ = "lifeguard.wrap(<ASGI app>)"  # where a WSGI server calls it
    return lifeguard_asgi


class _Served:
    """Stands in a lifespan scope where a unit stands in a request's: somebody has it."""

    state = OPEN


_LIFESPAN = _Served()


class _Life:
    """The life of one app in this process's worker: its lifespan, whoever runs it."""

    def __init__(
        self,
        app: ASGIApp,
        run: ASGIApp,
        guard: Lifeguard,
        resources: list[Resource[Any]],
        opened: Callable[[Worker], None],
    ) -> None:
        self.app = app
        self.plain = run  # the app, or what cancels it with its client
        self.run = run  # the same with the layers of libraries
        self.guard = guard
        self.resources = resources
        self.opened = opened  # tells the hot path
        self.worker = Worker(guard, awaits=True)
        self.state: dict[str, Any] | None = None  # what a startup left that no server hands on
        self._starting: tuple[object, Latch, list[BaseException]] | None = None

    async def front_door(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See to all that is not a plain request to an open worker."""
        outer = scope.get(self.guard.key)
        if outer is not None and outer.state is OPEN:  # wrapped twice: the outer one has it
            await self.app(scope, receive, send)
        elif scope["type"] == "lifespan":
            scope[self.guard.key] = _LIFESPAN
            try:
                await self._serve_lifespan(scope, receive, send)
            finally:
                scope.pop(self.guard.key, None)
        elif scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        else:
            if not self.worker.serving:
                try:
                    await self._stand_in()
                except Exception as exc:
                    await self._refuse(exc, scope, send)
                    return
            if self.state is not None:  # then the server's, if it has one, is empty
                scope["state"] = {**self.state, **(scope.get("state") or {})}
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One unit, as on the hot path, but inside of whatever unit is current."""
        unit = Request()
        unit.state = OPEN
        unit.source = scope
        unit.worker = self.worker
        unit.started = now()
        scope[self.guard.key] = unit
        current = self.guard.current
        outer = current.get()
        current.set(unit)
        error: BaseException | None = None
        try:
            await self.run(scope, receive, send)
        except BaseException as exc:
            error = exc
            raise
        finally:
            if current.get() is unit:  # not so where a dropped coroutine ends in another context
                current.set(outer)
            try:
                if isinstance(error, GeneratorExit):
                    unit.drop()
                else:
                    await unit.aconclude(error)
            finally:
                unit.source = None
                error = None  # or it would live in a cycle with this frame, and all it came through

    def _serve_in(self, worker: Worker) -> None:
        self.worker = worker
        self.run = self.guard.layered("asgi", self.plain)
        if self.state is None:  # else every request passes the front door, to be given a copy
            self.opened(worker)

    async def _refuse(self, exc: Exception, scope: Scope, send: Send) -> None:
        if isinstance(exc, ClosedError):
            await _answer(scope, send, 503, 1012, str(exc))
            return
        logger("worker").error(
            "the worker could not be opened, so %s %s was answered with 500: %s",
            scope["type"],
            scope.get("path", ""),
            failed_to_open(exc),
            exc_info=exc,
        )
        why = "The worker of this app could not be opened: see its log."
        await _answer(scope, send, 500, 1011, why)

    # -- the server speaks lifespan ------------------------------------------------------------

    async def _serve_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        try:
            worker = await shielded(self.guard.aacquire, self.resources)
        except Exception as exc:
            await send({"type": "lifespan.startup.failed", "message": failed_to_open(exc)})
            return
        stateless = "state" not in scope  # an older server, or a test's: we do it for that one
        if stateless:
            scope["state"] = {}
        lifespan = _Lifespan(self.app, scope)

        async def stop() -> Message:
            if self.worker is worker:
                self._serve_in(Worker(self.guard, awaits=True))
            return await self._stop(lifespan, worker)

        try:
            answer = await shielded(lifespan.start)
            if answer["type"] == "lifespan.startup.complete":
                worker.push(Call(lifespan.stop, awaits=True))  # whoever stops it first
                self.state = (scope["state"] or None) if stateless else None
                self._serve_in(worker)
            await send(answer)
            if answer["type"] == "lifespan.startup.complete":
                await receive()  # lifespan.shutdown
        except GeneratorExit:  # thrown away with its loop: the worker's own end sees to the rest
            raise
        except BaseException:  # also a server that cancels instead of telling
            await shielded(stop)
            raise
        answer = await shielded(stop)
        if lifespan.started:
            await send(answer)
        if lifespan.error is not None:
            raise lifespan.error

    async def _stop(self, lifespan: _Lifespan, worker: Worker, *, held: bool = True) -> Message:
        if lifespan.started:
            await worker.drain()
        answer = await lifespan.stop()
        try:
            await self.guard.aleave(worker, held=held)
        except Exception as exc:
            self.guard.report(worker, exc)
            return {"type": "lifespan.shutdown.failed", "message": explain(exc)}
        return answer

    # -- the server does not -------------------------------------------------------------------

    async def _stand_in(self) -> None:
        """Run the lifespan ourselves, once, for all requests that wait for it.

        If it fails, each of them learns why, and the next request tries again.
        """
        starting = self._starting
        loop = running_loop()
        if starting is None or starting[1].is_set() or starting[0] is not loop:
            if self.worker.serving:
                return
            self._starting = starting = (loop, Latch(), [])
            spawn(self._start_alone, starting[1], starting[2])
        await starting[1].wait_async()
        for failure in starting[2]:
            raise failure

    async def _start_alone(self, latch: Latch, failures: list[BaseException]) -> None:
        try:
            worker = await self.guard.aacquire(self.resources, hold=False)
            lifespan = _Lifespan(self.app, _lifespan_scope())
            try:
                answer = await lifespan.start()
                if answer["type"] != "lifespan.startup.complete":
                    raise lifespan.error or RuntimeError(answer.get("message", "startup failed"))
            except BaseException:
                await self._stop(lifespan, worker, held=False)
                raise
            worker.push(Call(lifespan.stop, awaits=True))  # runs before the resources close
            self.state = lifespan.scope["state"] or None
            self._serve_in(worker)
        except BaseException as exc:
            failures.append(exc)
        finally:
            latch.set()


#: Whether this task is in a lifespan that one of ours runs, and waits for when it ends.
awaited: ContextVar[bool] = ContextVar("lifeguard.lifespan", default=False)


class _Lifespan:
    """Runs the app's side of the lifespan protocol in a task of its own.

    There the app's startup and shutdown see one task, and no server cancels them in the middle.
    """

    def __init__(self, app: ASGIApp, scope: Scope) -> None:
        self.app = app
        self.scope = scope
        self.started = False
        self.supported = True
        self.error: BaseException | None = None  # what the app raised, for the server
        self._keeper = Keeper(self._main, "lifespan of the app")
        self._keeper.on_cancel = lambda: None  # the worker closes, and this in its turn
        self._startup: Message | None = None
        self._shutdown: Message = {"type": "lifespan.shutdown.complete"}

    async def start(self) -> Message:
        """The app's answer to startup. Ours, for an app that has no lifespan."""
        try:
            await self._keeper.open()
        except BaseException as exc:
            self.error = exc
        if self._startup is None:
            if self.error is not None and self.supported:
                self._startup = {
                    "type": "lifespan.startup.failed",
                    "message": failed_to_open(self.error),
                }
            else:
                self.error = None
                self._startup = {"type": "lifespan.startup.complete"}
        self.started = self._startup["type"] == "lifespan.startup.complete"
        return self._startup

    async def stop(self) -> Message:
        """The app's answer to shutdown."""
        if self.started:
            try:
                await self._keeper.close()
            except Exception as exc:
                self.error = exc
                if self._shutdown["type"] != "lifespan.shutdown.failed":  # its own word counts
                    self._shutdown = {"type": "lifespan.shutdown.failed", "message": explain(exc)}
        return self._shutdown

    async def _main(self, keeper: Keeper) -> None:
        awaited.set(True)  # in a task of its own, and so for the app's lifespan alone
        asked = 0

        async def receive() -> Message:
            nonlocal asked
            asked += 1
            if asked == 1:
                return {"type": "lifespan.startup"}
            await keeper.told()
            return {"type": "lifespan.shutdown"}

        async def send(message: Message) -> None:
            kind = message["type"]
            if kind == "lifespan.startup.complete":
                self._startup = message
                keeper.ready()
            elif kind == "lifespan.startup.failed":
                self._startup = message
            elif kind in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                self._shutdown = message
            else:
                raise _NotLifespan(kind)

        try:
            await self.app(self.scope, receive, send)
        except _NotLifespan:
            self.supported = False
        except Exception:
            # Django and many plain apps raise at the sight of the scope. That is not a failure.
            self.supported = asked > 0
            if self.supported:
                raise
        if self._startup is None and (asked == 0 or not self.supported):
            keeper.ready()
            await keeper.told()


class lifespan_of:
    """Run the lifespan of *app* by its protocol, as a server would, for an ``async with`` block.

    The value is the state that its startup left.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._lifespan = _Lifespan(app, _lifespan_scope())

    async def __aenter__(self) -> dict[str, Any]:
        answer = await self._lifespan.start()
        if answer["type"] != "lifespan.startup.complete":
            raise self._lifespan.error or RuntimeError(answer.get("message") or "startup failed")
        state: dict[str, Any] = self._lifespan.scope["state"]
        return state

    async def __aexit__(self, *exc: object) -> None:
        await self._lifespan.stop()
        if self._lifespan.error is not None:
            raise self._lifespan.error


class _NotLifespan(Exception):
    """The app took the lifespan scope for something else."""


def _lifespan_scope() -> dict[str, Any]:
    return {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}


async def _answer(scope: Scope, send: Send, status: int, code: int, why: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": code, "reason": why[:120]})
        return
    body = f"lifeguard: {why}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
    ]
    if status == 503:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _Client:
    """Reads ahead of the app, so that a disconnect is noticed while the app does something else."""

    def __init__(self, receive: Receive, send: Send, cancel: Callable[[], object]) -> None:
        import anyio

        self._receive = receive
        self._send = send
        self._cancel = cancel
        self._event = anyio.Event
        self._scope = anyio.CancelScope()  # of the task that watches
        self._messages: list[Message] = []
        self._arrived = anyio.Event()
        self._wanted = anyio.Event()
        self._error: Exception | None = None
        self._served = False
        self.left = False  #: whether the app was cancelled because of it
        spawn(self._watch)

    def end(self) -> None:
        """The app has ended: nobody is interested any more."""
        self._scope.cancel()

    async def _watch(self) -> None:
        with self._scope:
            try:
                while True:
                    message = await self._receive()
                    self._messages.append(message)
                    self._wanted = self._event()
                    self._arrived.set()
                    if message["type"] == "http.disconnect":
                        break
                    if message.get("more_body", False):  # an upload is read at the app's own pace
                        await self._wanted.wait()
            except Exception as exc:  # the app gets it when it asks
                self._error = exc
                self._arrived.set()
                return
            if not self._served:  # else the client got all it wanted, and servers say so like this
                self.left = True
                self._cancel()

    async def receive(self) -> Message:
        """The app's ``receive``."""
        while not self._messages:
            if self._error is not None:
                raise self._error
            self._wanted.set()
            await self._arrived.wait()
        message = self._messages[0]
        if message["type"] != "http.disconnect":  # that one is true for ever
            self._messages.pop(0)
            if not self._messages and self._error is None:
                self._arrived = self._event()
        return message

    async def send(self, message: Message) -> None:
        """The app's ``send``, which passes on what it gets, and sees the end of the response."""
        kind = message["type"]
        if kind == "http.response.body":
            self._served = not message.get("more_body", False)
        elif kind == "http.response.pathsend":
            self._served = True
        await self._send(message)


def _cancelled_with_client(app: ASGIApp) -> ASGIApp:
    """Cancel the app when its HTTP client leaves before it got the whole response.

    The server's ``receive`` is read ahead by one message at most.
    """

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        task = current_task()
        if task is None:
            import anyio

            with anyio.CancelScope() as here:  # swallows its own cancellation only
                client = _Client(receive, send, here.cancel)
                try:
                    await app(scope, client.receive, client.send)
                finally:
                    client.end()
            return
        client = _Client(receive, send, task.cancel)
        try:
            await app(scope, client.receive, client.send)
        except BaseException as exc:
            ours = client.left and task.uncancel() == 0  # and not the server's as well
            if ours and type(exc).__name__ == "CancelledError":
                return
            raise
        else:
            if client.left:
                task.uncancel()  # the app has swallowed it
        finally:
            client.end()

    return run
