"""A server played by hand: every message in and out is staged, and everything goes into one log.

Real servers decide for themselves when a client is gone or a task is cancelled. Here the test
decides, step by step, so that an ending happens at the same point in every run.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio

import lifeguard

BACKENDS = ("asyncio", "uvloop", "trio")

Message = dict[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]


def run(backend: str, func: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Run *func* on a new event loop of *backend*, as a server's process does."""
    if backend == "trio":
        return anyio.run(func, *args, backend="trio")
    options = {"use_uvloop": backend == "uvloop"}
    return anyio.run(func, *args, backend="asyncio", backend_options=options)


def scope(type_: str = "http", **more: Any) -> dict[str, Any]:
    """What a server passes for one request."""
    base: dict[str, Any] = {
        "type": type_,
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "path": "/orders",
        "raw_path": b"/orders",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"test")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    if type_ == "http":
        base["method"] = "GET"
    return base | more


class Log(list[str]):
    """What happened, in order. Calling it appends."""

    def __call__(self, *events: str) -> None:
        self.extend(events)


class Reports(lifeguard.Observer):
    """Puts what the guard reports into the log."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.errors: list[BaseException] = []

    def callback_failed(self, lifetime: Any, error: BaseException) -> None:
        self.errors.append(error)
        self.log(f"reported {type(error).__name__} of {type(lifetime).__name__}")


class Task:
    """A task that the test can cancel from outside."""

    def __init__(self, cancel: Callable[[], object]) -> None:
        self.cancel = cancel


@contextlib.asynccontextmanager
async def in_task(func: Callable[[], Awaitable[None]]) -> AsyncIterator[Task]:
    """Run *func* in a task as a server runs an app. Its end is waited for."""
    if _on_trio():
        import trio

        outer, inner = trio.CancelScope(), trio.CancelScope()
        scopes = iter((inner, outer))

        async def main() -> None:
            with outer, inner:
                await func()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(main)
            yield Task(lambda: next(scopes).cancel())
        return

    async def quiet() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await func()

    task = asyncio.get_running_loop().create_task(quiet())
    try:
        yield Task(task.cancel)
    finally:
        await asyncio.wait((task,))
        task.result()


def _on_trio() -> bool:
    import sniffio

    return sniffio.current_async_library() == "trio"


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


def frames(exc: BaseException | None) -> list[str]:
    """The functions an exception came through, without those of lifeguard and of the server."""
    if exc is None:
        return []
    return [
        frame.name
        for frame in traceback.extract_tb(exc.__traceback__)
        if "/lifeguard/" not in frame.filename and frame.name not in ("call", "middleware")
    ]


def _shown(exc: BaseException | None) -> str:
    # Cancellations name the task and the scope they came from, by address.
    name = type(exc).__name__
    return name if name.startswith("Cancelled") else repr(exc)


def chain(exc: BaseException | None) -> list[str]:
    """An exception with what it is chained to and what is noted on it, as text."""
    seen: list[str] = []
    while exc is not None and len(seen) < 10:
        notes = getattr(exc, "__notes__", [])
        shown = [_shown(exc), _shown(exc.__cause__), repr(notes)]
        seen.append(" / ".join(shown))
        exc = exc.__context__
    return seen


def in_unit(guard: lifeguard.Lifeguard) -> str:
    """Whether code right here is in a unit, as it would find out itself."""
    try:
        guard.callback(int)
    except (lifeguard.NotOpenError, lifeguard.ClosedError):
        return "in no unit"
    unit = guard.current.get()
    assert unit is not None
    return f"in unit {unit.name.partition(' (')[0]!r}"  # without its place in the code


def http_only(app: App) -> App:
    """What Django and many plain apps do with a lifespan: they raise."""

    async def call(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("this app has no lifespan")
        await app(scope, receive, send)

    return call


class Play:
    """One request to one app, bare or guarded, and the log of all that happened in it."""

    def __init__(
        self, *, guarded: bool, failing: str = "", guard: lifeguard.Lifeguard | None = None
    ) -> None:
        self.log = Log()
        self.guarded = guarded
        self.failing = failing
        self.reports = Reports(self.log)
        self.guard = guard or lifeguard.Lifeguard(
            handle_sigterm=False, observers=[self.reports], grace=5
        )
        self.wire: list[tuple[str, Message]] = []
        self.inbox: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]
        self.send_error: BaseException | None = None
        self.raised: BaseException | None = None
        self.outcome: BaseException | None = None
        self.scope: dict[str, Any] = scope()
        self.outer: lifeguard.Unit | None = None

    # -- the app's side ------------------------------------------------------------------------

    def register(self) -> None:
        """Three callbacks: sync, async, sync. In the bare run nothing."""
        self.at("begins")
        if not self.guarded:
            return
        self.guard.callback(self._sync, "first")
        self.guard.callback(self._async, "second")
        self.guard.callback(self._sync, "third")

    def callbacks(self) -> list[str]:
        """What the log says when they all ran once, last first, each outside the unit."""
        ran = ["callback third", "callback second", "callback first"]
        reported = {
            "": [],
            "sync": ["ZeroDivisionError", "ZeroDivisionError"],
            "async": ["LookupError"],
        }[self.failing]
        return ran + [f"reported {name} of Request" for name in reported]

    def _sync(self, name: str) -> None:
        self.at(f"callback {name}")
        if self.failing == "sync":
            raise ZeroDivisionError(name)

    async def _async(self, name: str) -> None:
        await anyio.lowlevel.checkpoint()
        self.at(f"callback {name}")
        if self.failing == "async":
            raise LookupError(name)

    def at(self, what: str) -> None:
        self.log(what)

    # -- the server's side ---------------------------------------------------------------------

    async def receive(self) -> Message:
        if not self.inbox:
            await anyio.sleep_forever()
        message = self.inbox.pop(0)
        self.wire.append(("receive", dict(message)))
        self.log(f"receive {message['type']}")
        return message

    async def send(self, message: Message) -> None:
        self.wire.append(("send", dict(message)))
        self.log(f"send {message['type']}")
        await anyio.lowlevel.checkpoint()
        if self.send_error is not None and message["type"].endswith(".body"):
            raise self.send_error

    async def call(self, app: App) -> None:
        """Call the app as a server does, and note how it ended."""
        try:
            await app(self.scope, self.receive, self.send)
        except anyio.get_cancelled_exc_class() as exc:
            self.ended(exc, "cancelled")
            raise
        except BaseException as exc:
            self.ended(exc, f"raised {type(exc).__name__}")
        else:
            self.ended(None, "returned")

    def ended(self, exc: BaseException | None, how: str) -> None:
        self.outcome = exc
        self.log(f"server: {how}, {in_unit(self.guard)}, open units {self.open_units()}")

    def open_units(self) -> int:
        return len([unit for unit in self.guard._worker.running() if unit is not self.outer])

    @contextlib.asynccontextmanager
    async def serving(self, app: App) -> AsyncIterator[App]:
        """Wrap the app if this run is guarded, and run its lifespan around the block."""
        if inspect.iscoroutinefunction(app):
            app = http_only(app)
        if self.guarded:
            app = self.guard.wrap(app)
        async with lifespan(app):
            yield app


class LifespanServer:
    """The server's side of the lifespan protocol, one step at a time."""

    def __init__(self, app: App, *, state: dict[str, Any] | None = None) -> None:
        self.app = app
        self.messages: list[Message] = []
        self.log: Log = Log()
        self.error: BaseException | None = None
        self.ended = anyio.Event()
        self.scope: dict[str, Any] = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
        }
        if state is not None:
            self.scope["state"] = state
        self._answered = anyio.Event()
        self._shutdown = anyio.Event()
        self._received = 0

    async def main(self) -> None:
        """Run the app's lifespan: this is the task that a server makes for it."""
        try:
            await self.app(self.scope, self.receive, self.send)
        except Exception as exc:
            self.error = exc
            self.log(f"server: app raised {type(exc).__name__}")
        else:
            self.log("server: app returned")
        finally:
            self.ended.set()
            self._answered.set()

    async def receive(self) -> Message:
        self._received += 1
        if self._received == 1:
            return {"type": "lifespan.startup"}
        await self._shutdown.wait()
        return {"type": "lifespan.shutdown"}

    async def send(self, message: Message) -> None:
        self.messages.append(dict(message))
        self.log(f"server: {message['type']}")
        self._answered.set()

    async def startup(self) -> None:
        await self._answered.wait()

    def shut_down(self) -> None:
        self._shutdown.set()


@contextlib.asynccontextmanager
async def lifespan(app: App) -> AsyncIterator[LifespanServer]:
    """Run the lifespan of *app* around the block, where a server would."""
    server = LifespanServer(app)
    async with in_task(server.main):
        await server.startup()
        try:
            yield server
        finally:
            server.shut_down()
            with anyio.CancelScope(shield=True):
                await server.ended.wait()
