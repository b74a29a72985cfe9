"""Every way an ASGI unit can end, on asyncio, uvloop and trio.

Each ending is a script that runs twice, with the bare app and with the guarded one. The guarded
log must be the bare log with the callbacks in it, right before the server hears of the end: so
nothing of the app's own course has changed, and the clean-up is complete when the server goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

import lifeguard
from tests.endings.server import (
    BACKENDS,
    Log,
    Play,
    chain,
    frames,
    in_task,
    in_unit,
    lifespan,
    run,
    scope,
    settle,
)

Script = Callable[[Play], Awaitable[None]]
ENDINGS: dict[str, Script] = {}

START = {"type": "http.response.start", "status": 200, "headers": [(b"x-app", b"1")]}
CHUNK = {"type": "http.response.body", "body": b"part", "more_body": True}
LAST = {"type": "http.response.body", "body": b"", "more_body": False}


def ending(script: Script) -> Script:
    ENDINGS[script.__name__] = script
    return script


class Fatal(BaseException):
    """Neither an Exception nor a cancellation."""


def fail(play: Play, error: BaseException) -> None:
    """Raise *error* two frames deep with a context, a cause and a note, and remember it."""
    try:
        raise KeyError("before")
    except KeyError as before:
        error.add_note("said by the app")
        play.raised = error
        raise error from before


async def one_call(play: Play, app: Any) -> None:
    async with play.serving(app) as served:
        await play.call(served)


# -- the endings ----------------------------------------------------------------------------------


@ending
async def returns(play: Play) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        play.register()
        await receive()
        await send(START)
        await send(CHUNK)
        await send(LAST)
        play.at("end of app")

    await one_call(play, app)


@ending
async def returns_without_an_answer(play: Play) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        play.register()

    await one_call(play, app)


def _raising(name: str, make: Callable[[], BaseException], *, after: int) -> None:
    async def script(play: Play) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            play.register()
            for message in (START, CHUNK)[:after]:
                await send(message)
            fail(play, make())

        await one_call(play, app)

    ENDINGS[name] = script


_raising("raises_before_the_response", lambda: ValueError("no"), after=0)
_raising("raises_mid_stream", lambda: ValueError("no"), after=2)
_raising("raises_base_exception", lambda: Fatal("no"), after=1)
_raising(
    "raises_exception_group",
    lambda: ExceptionGroup("many", [ValueError("a"), KeyError("b")]),
    after=1,
)
_raising(
    "raises_base_exception_group",
    lambda: BaseExceptionGroup("many", [ValueError("a"), Fatal("b")]),
    after=1,
)


@ending
async def disconnect_before_the_body(play: Play) -> None:
    play.inbox[:] = [{"type": "http.disconnect"}]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        play.register()
        message = await receive()
        play.at(f"app got {message['type']}")
        fail(play, ConnectionResetError("client left"))

    await one_call(play, app)


@ending
async def disconnect_in_mid_body(play: Play) -> None:
    play.inbox[:] = [
        {"type": "http.request", "body": b"half", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        play.register()
        while (await receive())["type"] == "http.request":
            pass
        play.at("app gives up")

    await one_call(play, app)


@ending
async def disconnect_during_the_view_which_watches(play: Play) -> None:
    play.inbox.append({"type": "http.disconnect"})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        play.register()
        await receive()
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                await receive()
                group.cancel_scope.cancel()

            group.start_soon(watch)
            await anyio.sleep_forever()
        play.at("view was cancelled by itself")

    await one_call(play, app)


@ending
async def disconnect_during_the_view_which_does_not_watch(play: Play) -> None:
    play.inbox.append({"type": "http.disconnect"})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        play.register()
        await receive()
        await send(START)
        await send(LAST)
        play.at(f"app got {(await receive())['type']}")

    await one_call(play, app)


@ending
async def send_raises_in_mid_stream(play: Play) -> None:
    play.send_error = play.raised = OSError("client is gone")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        play.register()
        await send(START)
        for _ in range(5):
            await send(CHUNK)

    await one_call(play, app)


@ending
async def send_raises_and_the_app_swallows_it(play: Play) -> None:
    play.send_error = OSError("client is gone")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        play.register()
        await send(START)
        try:
            await send(CHUNK)
        except OSError:
            play.at("swallowed")

    await one_call(play, app)


def _cancelled(name: str, *messages: Any) -> None:
    async def script(play: Play) -> None:
        waiting = anyio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            play.register()
            for message in messages:
                await send(message)
            waiting.set()
            try:
                await anyio.sleep_forever()
            except BaseException as exc:
                play.at("app is cancelled")
                play.raised = exc
                raise

        async with play.serving(app) as served:
            async with in_task(lambda: play.call(served)) as task:
                await waiting.wait()
                task.cancel()

    ENDINGS[name] = script


_cancelled("cancelled_by_the_server_before_the_response")
_cancelled("cancelled_by_the_server_in_mid_stream", START, CHUNK)


@ending
async def cancelled_by_the_server_before_its_first_step(play: Play) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        play.register()
        try:
            await anyio.sleep_forever()
        except BaseException as exc:
            play.raised = exc
            raise

    async with play.serving(app) as served:
        async with in_task(lambda: play.call(served)) as task:
            await settle()
            task.cancel()


@ending
async def cancelled_by_the_server_and_swallowed(play: Play) -> None:
    waiting = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        play.register()
        waiting.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            play.at("swallowed")

    async with play.serving(app) as served:
        async with in_task(lambda: play.call(served)) as task:
            await waiting.wait()
            task.cancel()


@ending
async def cancelled_by_level(play: Play) -> None:
    waiting = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        play.register()
        waiting.set()
        try:
            await anyio.sleep_forever()
        except BaseException as exc:
            play.raised = exc
            raise

    async with play.serving(app) as served:
        async with anyio.create_task_group() as group:
            group.start_soon(play.call, served)
            await waiting.wait()
            group.cancel_scope.cancel()


@ending
async def runs_out_of_a_time_limit_of_the_server(play: Play) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        play.register()
        await send(START)
        try:
            await anyio.sleep_forever()
        except BaseException as exc:
            play.raised = exc
            raise

    async with play.serving(app) as served:
        with anyio.move_on_after(0.01):
            await play.call(served)


@ending
async def runs_out_of_a_time_limit_of_the_app(play: Play) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        play.register()
        try:
            with anyio.fail_after(0.001):
                await anyio.sleep_forever()
        except TimeoutError as exc:
            play.raised = exc
            raise

    await one_call(play, app)


# -- endings of Starlette apps --------------------------------------------------------------------


def _starlette(name: str, middleware: list[Middleware] | None = None) -> Any:
    """The decorated function answers a request: it becomes an ending of a Starlette app."""

    def decorate(endpoint: Callable[[Play], Awaitable[Any]]) -> None:
        async def script(play: Play) -> None:
            async def view(request: Any) -> Any:
                play.register()
                return await endpoint(play)

            app = Starlette(routes=[Route("/orders", view)], middleware=middleware or [])
            await one_call(play, app)

        ENDINGS[name] = script

    return decorate


@_starlette("starlette_background_task")
async def _(play: Play) -> Any:
    async def work() -> None:
        play.at("background begins")
        await anyio.lowlevel.checkpoint()
        play.at("background ends")

    return PlainTextResponse("ok", background=BackgroundTask(work))


@_starlette("starlette_background_task_in_a_thread")
async def _(play: Play) -> Any:
    return PlainTextResponse("ok", background=BackgroundTask(play.at, "background"))


@_starlette("starlette_background_task_raises")
async def _(play: Play) -> Any:
    async def work() -> None:
        play.at("background begins")
        fail(play, ValueError("background"))

    return PlainTextResponse("ok", background=BackgroundTask(work))


@_starlette("starlette_view_raises")
async def _(play: Play) -> Any:
    fail(play, ValueError("view"))


@_starlette("starlette_stream_raises")
async def _(play: Play) -> Any:
    async def body() -> Any:
        yield b"one"
        fail(play, ValueError("stream"))

    return StreamingResponse(body())


async def _pass_on(request: Any, call_next: Any) -> Any:
    return await call_next(request)


_BASE_HTTP = [Middleware(BaseHTTPMiddleware, dispatch=_pass_on)]


@_starlette("base_http_middleware", _BASE_HTTP)
async def _(play: Play) -> Any:
    return PlainTextResponse("ok")


@_starlette("base_http_middleware_and_the_view_raises", _BASE_HTTP)
async def _(play: Play) -> Any:
    fail(play, ValueError("view"))


@_starlette("base_http_middleware_and_background_task", _BASE_HTTP)
async def _(play: Play) -> Any:
    return PlainTextResponse("ok", background=BackgroundTask(play.at, "background"))


@ending
async def starlette_background_task_cancelled_by_the_server(play: Play) -> None:
    waiting = anyio.Event()

    async def work() -> None:
        waiting.set()
        try:
            await anyio.sleep_forever()
        except BaseException as exc:
            play.at("background is cancelled")
            play.raised = exc
            raise

    async def view(request: Any) -> Any:
        play.register()
        return PlainTextResponse("ok", background=BackgroundTask(work))

    app = Starlette(routes=[Route("/orders", view)])
    async with play.serving(app) as served:
        async with in_task(lambda: play.call(served)) as task:
            await waiting.wait()
            task.cancel()


@ending
async def starlette_stream_and_the_client_leaves(play: Play) -> None:
    streaming = anyio.Event()

    async def view(request: Any) -> Any:
        play.register()

        async def body() -> Any:
            yield b"one"
            streaming.set()
            await anyio.sleep_forever()

        return StreamingResponse(body())

    async def receive() -> Any:
        await streaming.wait()
        play.log("receive http.disconnect")
        return {"type": "http.disconnect"}

    play.receive = receive  # type: ignore[method-assign]
    play.scope["asgi"]["spec_version"] = "2.0"  # Starlette watches receive() itself
    await one_call(play, Starlette(routes=[Route("/orders", view)]))


# -- the matrix -----------------------------------------------------------------------------------


def play_twice(name: str, backend: str, failing: str = "") -> tuple[Play, Play]:
    plays = []
    for guarded in (False, True):

        async def script(guarded: bool = guarded) -> Play:
            play = Play(guarded=guarded, failing=failing)
            await ENDINGS[name](play)
            return play

        plays.append(run(backend, script))
    return plays[0], plays[1]


@pytest.fixture
def unit_errors(caplog: pytest.LogCaptureFixture) -> Callable[[], list[Any]]:
    """What was logged as an error on ``lifeguard.unit``: the exception of each record."""

    def errors() -> list[Any]:
        return [
            record.exc_info[1] if record.exc_info else None
            for record in caplog.records
            if record.name == "lifeguard.unit" and record.levelno == logging.ERROR
        ]

    return errors


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("failing", ["", "sync", "async"], ids=["ok", "sync-fails", "async-fails"])
@pytest.mark.parametrize("name", ENDINGS)
def test_every_ending(name: str, failing: str, backend: str, unit_errors: Any) -> None:
    """However a request ends, its callbacks run once, last first, before the server hears of it;
    messages stay byte for byte as they were, and the app's exception is the very same object.
    What callbacks raise is logged and reported, and changes nothing of this."""
    bare, guarded = play_twice(name, backend, failing)

    assert guarded.log == [*bare.log[:-1], *guarded.callbacks(), bare.log[-1]]
    assert guarded.wire == bare.wire
    assert type(guarded.outcome) is type(bare.outcome)
    if guarded.raised is not None:
        assert (guarded.outcome is guarded.raised) == (bare.outcome is bare.raised)
    assert frames(guarded.outcome) == frames(bare.outcome)
    assert chain(guarded.outcome) == chain(bare.outcome)
    assert unit_errors() == guarded.reports.errors


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ENDINGS)
def test_every_ending_inside_of_a_unit(name: str, backend: str) -> None:
    """The same for a request that is made inside of another unit, as test clients and sub-requests
    do: it has a unit of its own, and the outer one is current again after it."""
    plays = []
    for guarded in (False, True):

        async def script(guarded: bool = guarded) -> Play:
            play = Play(guarded=guarded)
            if not guarded:
                await ENDINGS[name](play)
                return play
            async with play.guard.unit("outer") as play.outer:
                await ENDINGS[name](play)
                play.at(in_unit(play.guard))
            return play

        plays.append(run(backend, script))
    bare, guarded_play = plays

    assert guarded_play.log == [
        *bare.log[:-1],
        *guarded_play.callbacks(),
        bare.log[-1].replace("in no unit", "in unit 'outer'"),
        "in unit 'outer'",
    ]
    assert guarded_play.wire == bare.wire
    if guarded_play.raised is not None:
        identical = bare.outcome is bare.raised
        assert (guarded_play.outcome is guarded_play.raised) == identical
    assert frames(guarded_play.outcome) == frames(bare.outcome)
    assert chain(guarded_play.outcome) == chain(bare.outcome)


def test_the_matrix_is_about_the_same_object() -> None:
    """Each ending that raises says which object it raised, so that identity is really compared."""
    for name in ENDINGS:
        bare, _ = play_twice(name, "asyncio")
        assert (bare.outcome is None) or (bare.outcome is bare.raised), name


# -- endings that need a hand in the clean-up -----------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", ["app-returned", "app-raised", "app-cancelled"])
def test_cancelled_while_the_clean_up_runs(how: str, backend: str) -> None:
    """A cancellation that hits the clean-up is late, not lost, and cuts nothing short: the async
    callback goes on where it was, the one below it runs, and only then the server hears of it."""

    async def main() -> Play:
        play = Play(guarded=True)
        waiting, cleaning, go_on = anyio.Event(), anyio.Event(), anyio.Event()

        async def clean() -> None:
            play.at("clean-up begins")
            cleaning.set()
            await go_on.wait()
            play.at("clean-up ends")

        async def app(scope: Any, receive: Any, send: Any) -> None:
            play.guard.callback(play.at, "the one below")
            play.guard.callback(clean)
            waiting.set()
            if how == "app-raised":
                play.raised = ValueError("no")
                raise play.raised
            if how == "app-cancelled":
                await anyio.sleep_forever()

        async with play.serving(app) as served:
            async with in_task(lambda: play.call(served)) as task:
                await waiting.wait()
                if how == "app-cancelled":
                    task.cancel()
                await cleaning.wait()
                task.cancel()
                await settle()
                play.at(f"cancelled in the clean-up, open units {play.open_units()}")
                go_on.set()
        return play

    play = run(backend, main)

    ended = {
        # Where the app has a result already, the late cancellation is what the server asked for.
        "asyncio": "cancelled",
        "uvloop": "cancelled",
        # trio has no edge: the scope is cancelled, and the next checkpoint of the task says so.
        "trio": {"app-returned": "returned", "app-raised": "raised ValueError"}.get(
            how, "cancelled"
        ),
    }[backend]
    assert play.log == [
        "clean-up begins",
        "cancelled in the clean-up, open units 1",
        "clean-up ends",
        "the one below",
        f"server: {ended}, in no unit, open units 0",
    ]


@pytest.mark.parametrize("backend", ["asyncio", "uvloop"])
def test_cancelled_many_times_while_the_clean_up_runs(backend: str) -> None:
    """Ten cancellations in a row change no more than one."""

    async def main() -> Play:
        play = Play(guarded=True)
        cleaning, go_on = anyio.Event(), anyio.Event()

        async def clean() -> None:
            cleaning.set()
            await go_on.wait()
            play.at("clean-up ends")

        async def app(scope: Any, receive: Any, send: Any) -> None:
            play.guard.callback(clean)

        async with play.serving(app) as served:
            async with in_task(lambda: play.call(served)) as task:
                await cleaning.wait()
                for _ in range(10):
                    task.cancel()
                    await settle()
                go_on.set()
        return play

    play = run(backend, main)

    assert play.log == [
        "clean-up ends",
        "server: cancelled, in no unit, open units 0",
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_callback_that_hangs_is_given_up_after_the_grace(backend: str) -> None:
    """Clean-up is bounded: what hangs is named and cancelled, the callbacks below it still run."""

    async def main() -> Play:
        play = Play(guarded=True)
        play.guard.grace = 0.5

        async def hang() -> None:
            play.at("hangs")
            try:
                await anyio.sleep_forever()
            finally:
                play.at("cancelled")

        async def app(scope: Any, receive: Any, send: Any) -> None:
            play.guard.callback(play.at, "the one below")
            play.guard.callback(hang)

        await one_call(play, app)
        return play

    play = run(backend, main)

    assert play.log == [
        "hangs",
        "cancelled",
        "the one below",
        "reported TimeoutError of Request",
        "server: returned, in no unit, open units 0",
    ]
    assert "hang" in str(play.reports.errors[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_keyboard_interrupt_in_a_callback_is_not_swallowed(backend: str) -> None:
    """A KeyboardInterrupt that arrives during the clean-up comes out, after the other callbacks."""

    async def main() -> Play:
        play = Play(guarded=True)

        def interrupted() -> None:
            raise KeyboardInterrupt

        async def app(scope: Any, receive: Any, send: Any) -> None:
            play.guard.callback(play.at, "the one below")
            play.guard.callback(interrupted)

        await one_call(play, app)
        return play

    play = run(backend, main)

    assert play.log == [
        "the one below",
        "reported KeyboardInterrupt of Request",
        "server: raised KeyboardInterrupt, in no unit, open units 0",
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_callback_registered_by_a_callback_runs(backend: str) -> None:
    """A callback that registers another one through the unit is not too late."""

    async def main() -> Play:
        play = Play(guarded=True)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            unit = play.guard.current.get()
            assert unit is not None

            async def late() -> None:
                play.at("late")

            def first() -> None:
                play.at("first")
                unit.callback(late)

            play.guard.callback(first)

        await one_call(play, app)
        return play

    play = run(backend, main)

    assert play.log == [
        "first",
        "late",
        "server: returned, in no unit, open units 0",
    ]


# -- coroutines that are thrown away --------------------------------------------------------------


def _dropped_play() -> tuple[Play, Any]:
    """A guarded app that stands in the middle of a request, as a coroutine driven by hand."""
    play = Play(guarded=True)

    class Forever:
        def __await__(self) -> Any:
            yield

    async def app(scope: Any, receive: Any, send: Any) -> None:
        play.register()
        try:
            await Forever()
        finally:
            play.at("app unwinds")

    return play, app


def _ended(play: Play) -> str:
    return f"{in_unit(play.guard)}, open units {play.open_units()}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("context", ["same", "other"])
@pytest.mark.parametrize("how", ["close", "refcount", "gc"])
def test_coroutine_dropped_while_its_loop_runs(how: str, context: str, backend: str) -> None:
    """A request whose coroutine is thrown away, by close() or by the garbage collector, in its own
    context or in another one, still ends once: sync callbacks there and then down to the first
    async one, the rest on the loop."""

    async def main() -> Play:
        play, app = _dropped_play()

        async with play.serving(app) as served:
            began = contextvars.copy_context()
            coroutine = served(play.scope, play.receive, play.send)
            if context == "other":
                began.run(coroutine.send, None)
            else:
                coroutine.send(None)
            play.at(f"open units {play.open_units()}")
            if how == "close":
                coroutine.close()
            elif how == "gc":
                cycle = [coroutine]
                cycle.append(cycle)
                del cycle
            del coroutine
            gc.collect()
            play.at("dropped")
            await settle()
            play.at(_ended(play))
        return play

    play = run(backend, main)

    assert play.log == [
        "begins",
        "open units 1",
        "app unwinds",
        "callback third",
        "dropped",
        "callback second",
        "callback first",
        "in no unit, open units 0",
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_coroutine_dropped_when_its_loop_is_gone(backend: str) -> None:
    """Where nothing can be awaited any more, sync callbacks run and the async one is reported."""
    play, app = _dropped_play()
    left: list[Any] = []

    async def main() -> None:
        async with play.serving(app) as served:
            coroutine = served(play.scope, play.receive, play.send)
            coroutine.send(None)
            left.append(coroutine)
            play.guard.grace = 0.5  # the worker does not wait long for a unit that cannot end
        play.at(f"worker {play.guard._worker.state!r}")

    run(backend, main)
    left.pop().close()

    assert play.log == [
        "begins",
        "worker closed",
        "app unwinds",
        "callback third",
        "callback first",
        "reported LoopIsGone of Request",
    ]
    assert "event loop is gone" in str(play.reports.errors[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_event_loop_that_ends_with_requests_in_flight(backend: str) -> None:
    """``asyncio.run`` cancels what is left at its end, and trio its system tasks: a request in
    flight then ends first, and the worker's resources close after it."""
    log = Log()
    guard = lifeguard.Lifeguard(handle_sigterm=False, observers=[lifeguard.Observer()], grace=5)

    @guard.resource
    async def db() -> Any:
        log("resource opens")
        yield "db"
        log("resource closes")

    async def clean() -> None:
        await anyio.lowlevel.checkpoint()
        log(f"clean-up with {db.get()}")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        guard.callback(clean)
        log("request waits")
        reached.set()
        try:
            await anyio.sleep_forever()
        finally:
            log("request unwinds")

    served = guard.wrap(app)
    ended: list[str] = []
    reached: Any = None

    async def main() -> None:
        nonlocal reached
        reached = anyio.Event()

        async def request() -> None:
            try:
                await served(scope(), None, None)
            except BaseException as exc:
                ended.append(f"{type(exc).__name__}, {in_unit(guard)}")
                raise

        if backend == "trio":
            import trio

            trio.lowlevel.spawn_system_task(request)
        else:
            main.task = asyncio.get_running_loop().create_task(request())  # type: ignore[attr-defined]
        await reached.wait()
        log("main ends")

    run(backend, main)

    cancelled = "Cancelled" if backend == "trio" else "CancelledError"
    assert log == [
        "resource opens",
        "request waits",
        "main ends",
        "request unwinds",
        "clean-up with db",
        "resource closes",
    ]
    assert ended == [f"{cancelled}, in no unit"]
    assert repr(guard._worker.state) == "closed"


# -- what is a unit, and what is not --------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
def test_websocket_unit(raises: bool, backend: str) -> None:
    """A websocket is one unit from its handshake to its end, and its messages pass untouched."""
    inbox = [
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": "hello"},
        {"type": "websocket.disconnect", "code": 1001},
    ]

    async def main(guarded: bool) -> Play:
        play = Play(guarded=guarded)
        play.scope = scope("websocket")
        play.inbox = [dict(message) for message in inbox]

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            play.register()
            await send({"type": "websocket.accept"})
            while (message := await receive())["type"] == "websocket.receive":
                await send({"type": "websocket.send", "text": message["text"]})
            if raises:
                fail(play, ValueError("after the disconnect"))

        await one_call(play, app)
        return play

    bare, guarded = run(backend, main, False), run(backend, main, True)

    assert guarded.log == [*bare.log[:-1], *guarded.callbacks(), bare.log[-1]]
    assert guarded.wire == bare.wire
    assert guarded.outcome is guarded.raised


@pytest.mark.parametrize("backend", BACKENDS)
def test_unknown_scope_passes_through(backend: str) -> None:
    """A scope type that lifeguard does not know is the app's business: same objects, no unit."""
    seen: list[Any] = []
    guard = lifeguard.Lifeguard(handle_sigterm=False)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send, guard.current.get()))

    async def main() -> None:
        given: Any = ({"type": "quic.stream"}, object(), object())
        await guard.wrap(app)(*given)
        assert [*given, None] == list(seen[0])
        assert seen[0][0] is given[0] and given[0] == {"type": "quic.stream"}

    run(backend, main)
    assert repr(guard._worker.state) == "not open yet"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
def test_asgi_2_app(raises: bool, backend: str) -> None:
    """An app of ASGI 2 (``App(scope)`` gives what is awaited) is guarded like any other, class or
    function."""

    async def main() -> list[Log]:
        logs = []
        for kind in ("class", "function"):
            play = Play(guarded=True)

            class App:
                play: Play

                def __init__(self, scope: Any) -> None:
                    self.scope = scope

                async def __call__(self, receive: Any, send: Any) -> None:
                    if self.scope["type"] != "http":
                        raise RuntimeError("no such protocol")
                    self.play.register()
                    await send(START)
                    if raises:
                        raise ValueError("no")

            App.play = play

            def function(scope: Any, App: Any = App) -> Any:
                return App(scope)

            await one_call(play, App if kind == "class" else function)
            logs.append(play.log)
        return logs

    how = "raised ValueError" if raises else "returned"
    expected = [
        "begins",
        "send http.response.start",
        "callback third",
        "callback second",
        "callback first",
        f"server: {how}, in no unit, open units 0",
    ]
    assert run(backend, main) == [expected, expected]


# -- wrapped twice, called twice ------------------------------------------------------------------


class Units:
    """An app that notes its current unit in each guard."""

    def __init__(self, *guards: lifeguard.Lifeguard) -> None:
        self.guards = guards
        self.seen: list[list[Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append([guard.current.get() for guard in self.guards])


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrapped_twice_by_one_guard_is_one_unit(backend: str) -> None:
    """Two wraps of one guard, also with other middleware in between, make one unit, which ends
    with the outer call: callbacks of the middleware in between run too, after the app's."""
    log = Log()
    guard = lifeguard.Lifeguard(handle_sigterm=False)
    units: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            units.append(guard.current.get())
            guard.callback(log, "callback of the app")
            log(f"open units {len(guard._worker.running())}")

    inner = guard.wrap(app)

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            units.append(guard.current.get())
            guard.callback(log, "callback of the middleware")
        await inner(scope, receive, send)
        if scope["type"] == "http":
            log("middleware ends")

    async def main() -> None:
        served = guard.wrap(middleware)
        async with lifespan(served):
            await served(scope(), None, None)
            log("request is over")

    run(backend, main)

    assert log == [
        "open units 1",
        "middleware ends",
        "callback of the app",
        "callback of the middleware",
        "request is over",
    ]
    assert units[0] is units[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrapped_by_two_guards_is_one_unit_each(backend: str) -> None:
    """Guards share nothing: each has a unit of its own, and the inner one ends first."""
    log = Log()
    outer = lifeguard.Lifeguard(handle_sigterm=False)
    inner = lifeguard.Lifeguard(handle_sigterm=False)
    units = Units(outer, inner)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await units(scope, receive, send)
            outer.callback(log, "outer")
            inner.callback(log, "inner")

    async def main() -> None:
        served = outer.wrap(inner.wrap(app))
        async with lifespan(served):
            await served(scope(), None, None)

    run(backend, main)

    assert log == ["inner", "outer"]
    assert None not in units.seen[0] and units.seen[0][0] is not units.seen[0][1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_scope_for_two_calls(backend: str) -> None:
    """A scope dict that is used again (test clients, internal redirects) gives a unit each time,
    and lifeguard leaves nothing in it but its mark."""

    async def main() -> None:
        guard = lifeguard.Lifeguard(handle_sigterm=False)
        units = Units(guard)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await units(scope, receive, send)
            if scope["path"] == "/raises":
                raise ValueError

        served = guard.wrap(app)
        used = scope()
        before = dict(used)
        async with lifespan(served):
            await served(used, None, None)
            used["path"] = "/raises"
            with pytest.raises(ValueError):
                await served(used, None, None)
            used["path"] = before["path"]
            await served(used, None, None)
        requests = [seen[0] for seen in units.seen if seen[0] is not None]
        assert len({id(unit) for unit in requests}) == 3
        assert used.pop(guard.key).state.name == "closed"
        assert used == before

    run(backend, main)


@pytest.mark.parametrize("backend", BACKENDS)
def test_requests_at_the_same_time_have_units_of_their_own(backend: str) -> None:
    """A hundred requests that overlap: each callback runs in its own request, none twice."""
    log = Log()

    async def main() -> None:
        guard = lifeguard.Lifeguard(handle_sigterm=False)
        all_in = anyio.Event()
        inside = 0

        async def app(scope: Any, receive: Any, send: Any) -> None:
            nonlocal inside
            if scope["type"] != "http":
                return
            unit = guard.current.get()
            guard.callback(log, scope["path"])
            inside += 1
            if inside == 100:
                log(f"open units {len(guard._worker.running())}")
                all_in.set()
            await all_in.wait()
            assert guard.current.get() is unit

        served = guard.wrap(app)
        async with lifespan(served):
            async with anyio.create_task_group() as group:
                for number in range(100):
                    group.start_soon(served, scope(path=f"/{number}"), None, None)
            log(f"open units {len(guard._worker.running())}")

    run(backend, main)

    assert log[0] == "open units 100" and log[-1] == "open units 0"
    assert sorted(log[1:-1]) == sorted(f"/{number}" for number in range(100))


# -- as a middleware class ------------------------------------------------------------------------


def _starlette_app(guard: lifeguard.Lifeguard, log: Log) -> Any:
    async def view(request: Any) -> Any:
        guard.callback(log, "callback")
        log(f"view in {guard.current.get()}")
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/orders", view)])
    app.add_middleware(lifeguard.asgi.Middleware, guard=guard)
    return app


def _fastapi_app(guard: lifeguard.Lifeguard, log: Log) -> Any:
    from fastapi import FastAPI

    app = FastAPI()
    app.add_middleware(lifeguard.asgi.Middleware, guard=guard)

    async def dependency() -> Any:
        yield
        log("dependency closes")

    from fastapi import Depends

    async def view(_: None = Depends(dependency)) -> str:
        guard.callback(log, "callback")
        log(f"view in {guard.current.get()}")
        return "ok"

    app.get("/orders")(view)
    return app


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [_starlette_app, _fastapi_app], ids=["starlette", "fastapi"])
def test_middleware_class(make: Any, backend: str) -> None:
    """``add_middleware(lifeguard.asgi.Middleware)`` guards a Starlette or FastAPI app, which builds
    its middleware stack for the lifespan already: the request is one unit."""

    async def main() -> Play:
        play = Play(guarded=False)
        app = make(play.guard, play.log)
        async with lifespan(app) as server:
            play.at(server.messages[0]["type"])
            await play.call(app)
        play.at(server.messages[1]["type"])
        return play

    play = run(backend, main)

    dependency = ["dependency closes"] if make is _fastapi_app else []
    assert play.log == [
        "lifespan.startup.complete",
        "view in unit 'GET /orders'",
        "send http.response.start",
        "send http.response.body",
        *dependency,
        "callback",
        "server: returned, in no unit, open units 0",
        "lifespan.shutdown.complete",
    ]


def test_middleware_class_uses_the_default_guard() -> None:
    """Without ``guard=`` the middleware class is the default guard's, like ``lifeguard.wrap``."""
    log = Log()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            lifeguard.callback(log, "callback")

    async def main() -> None:
        middleware = lifeguard.asgi.Middleware(app)
        async with lifespan(middleware):
            await middleware(scope(), None, None)  # type: ignore[arg-type]

    run("asyncio", main)
    assert log == ["callback"]


# -- memory ---------------------------------------------------------------------------------------


class Weak(dict[str, Any]):
    """A scope that tells when it is gone."""


@pytest.mark.parametrize("callbacks", [0, 1, 3])
@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("inside", [False, True], ids=["", "inside-a-unit"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_kept_after_the_request(
    backend: str, inside: bool, raises: bool, callbacks: int
) -> None:
    """The scope, and what callbacks were given, are freed with the request, without the help of
    the garbage collector."""
    gone: list[str] = []

    async def main() -> list[str]:
        guard = lifeguard.Lifeguard(handle_sigterm=False)
        kept: list[Any] = []

        async def nothing(_: object) -> None:
            await anyio.lowlevel.checkpoint()

        def ignore(_: object) -> None:
            pass

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                return
            argument = Weak()
            kept.append(weakref.ref(argument, lambda _: gone.append("argument")))
            for func in (ignore, nothing, ignore)[:callbacks]:
                guard.callback(func, argument)
            if raises:
                raise ValueError("no")

        served = guard.wrap(app)
        async with lifespan(served):
            gc.collect()
            gc.disable()
            try:
                given = Weak(scope())
                kept.append(weakref.ref(given, lambda _: gone.append("scope")))

                async def request(given: list[Any]) -> None:
                    try:
                        await served(given.pop(), None, None)
                    except ValueError:
                        pass

                async with contextlib.AsyncExitStack() as stack:
                    if inside:
                        await stack.enter_async_context(guard.unit("outer"))
                    async with in_task(lambda given=[given]: request(given)):  # type: ignore[misc]
                        del given
                await settle()
                return list(gone)
            finally:
                gc.enable()

    assert sorted(run(backend, main)) == ["argument", "scope"]
