"""``Lifeguard(cancel_on_disconnect=True)``: when the client is gone, the app is cancelled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import lifeguard
from tests.endings.server import (
    BACKENDS,
    Log,
    Play,
    Reports,
    chain,
    frames,
    http_only,
    in_task,
    run,
    scope,
    settle,
)
from tests.endings.test_asgi import ENDINGS, LAST, START

REQUEST = {"type": "http.request", "body": b"", "more_body": False}
DISCONNECT = {"type": "http.disconnect"}


class Client:
    """The server's side of one request: messages are there when the test says so."""

    def __init__(self, log: Log, *messages: Any) -> None:
        self.log = log
        self.asked = 0
        self._send, self._receive = anyio.create_memory_object_stream[Any](100)
        for message in messages:
            self._send.send_nowait(message)

    def says(self, message: Any) -> None:
        self._send.send_nowait(message)

    async def receive(self) -> Any:
        self.asked += 1
        message = await self._receive.receive()
        if isinstance(message, BaseException):
            raise message
        return message

    async def send(self, message: Any) -> None:
        await anyio.lowlevel.checkpoint()
        self.log(f"send {message['type']}")

    def close(self) -> None:
        self._send.close()
        self._receive.close()


def make_guard(log: Log, **options: Any) -> lifeguard.Lifeguard:
    return lifeguard.Lifeguard(
        handle_sigterm=False,
        observers=[Reports(log)],
        grace=5,
        **{"cancel_on_disconnect": True, **options},
    )


async def call(guard: lifeguard.Lifeguard, app: Any, client: Client, log: Log) -> None:
    """One request, its end in the log as the server sees it."""
    served = guard.wrap(app if isinstance(app, Starlette) else http_only(app))
    try:
        await served(scope(), client.receive, client.send)
    except anyio.get_cancelled_exc_class():
        log("server: cancelled")
        raise
    except BaseException as exc:
        log(f"server: raised {type(exc).__name__}")
    else:
        log("server: returned")
    finally:
        client.close()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
def test_the_app_is_cancelled_when_the_client_leaves(on: bool, backend: str) -> None:
    """A view that waits is cancelled and cleaned up, and the server sees a call that returned:
    nothing went wrong. Without the option it runs to its end."""
    log = Log()

    async def main() -> None:
        guard = make_guard(log, cancel_on_disconnect=on)
        client = Client(log, REQUEST)
        waiting, go_on = anyio.Event(), anyio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            guard.callback(log, "callback")
            assert await receive() == REQUEST
            waiting.set()
            try:
                await go_on.wait()
                log("view ends")
            except BaseException:
                log("view is cancelled")
                raise

        async with in_task(lambda: call(guard, app, client, log)):
            await waiting.wait()
            client.says(DISCONNECT)
            await settle()
            log("later")
            go_on.set()

    run(backend, main)

    assert log == (
        ["view is cancelled", "callback", "server: returned", "later"]
        if on
        else ["later", "view ends", "callback", "server: returned"]
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_async_clean_up_runs_after_the_cancellation(backend: str) -> None:
    """Clean-up that has to be awaited is not cut short by the cancellation."""
    log = Log()

    async def main() -> None:
        guard = make_guard(log)
        client = Client(log, REQUEST)
        waiting = anyio.Event()

        async def clean() -> None:
            await settle()
            log("cleaned")

        async def app(scope: Any, receive: Any, send: Any) -> None:
            guard.callback(clean)
            waiting.set()
            await anyio.sleep_forever()

        async with in_task(lambda: call(guard, app, client, log)):
            await waiting.wait()
            client.says(DISCONNECT)

    run(backend, main)

    assert log == ["cleaned", "server: returned"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_the_app_makes_of_it_is_the_apps_business(backend: str) -> None:
    """An app that catches the cancellation and raises something else: that is what comes out."""
    log = Log()
    error = ValueError("no")

    async def main() -> None:
        guard = make_guard(log)
        client = Client(log, REQUEST)
        waiting = anyio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            waiting.set()
            try:
                await anyio.sleep_forever()
            finally:
                raise error

        async with in_task(lambda: call(guard, app, client, log)):
            await waiting.wait()
            client.says(DISCONNECT)

    run(backend, main)

    assert log == ["server: raised ValueError"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_server_and_the_client_cancel_at_once(backend: str) -> None:
    """A cancellation by the server is not swallowed because the client has left, too."""
    log = Log()

    async def main() -> None:
        guard = make_guard(log)
        client = Client(log, REQUEST)
        waiting = anyio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            guard.callback(log, "callback")
            waiting.set()
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await settle()

        async with in_task(lambda: call(guard, app, client, log)) as task:
            await waiting.wait()
            client.says(DISCONNECT)
            await anyio.lowlevel.checkpoint()
            task.cancel()

    run(backend, main)

    assert log == ["callback", "server: cancelled"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_follows_a_complete_response_is_not_cancelled(backend: str) -> None:
    """Servers report ``http.disconnect`` to whoever asks after the response is complete, while the
    client got all it wanted: background tasks run to their end."""
    log = Log()

    async def main() -> None:
        guard = make_guard(log)
        client = Client(log, REQUEST)

        async def work() -> None:
            log("background begins")
            client.says(DISCONNECT)  # as uvicorn does once the response is complete
            await settle()
            log("background ends")

        async def view(request: Any) -> Any:
            return PlainTextResponse("ok", background=BackgroundTask(work))

        await call(guard, Starlette(routes=[Route("/orders", view)]), client, log)

    run(backend, main)

    assert log == [
        "send http.response.start",
        "send http.response.body",
        "background begins",
        "background ends",
        "server: returned",
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_disconnect_is_still_told(backend: str) -> None:
    """An app that asks itself hears of the disconnect as often as it asks."""
    log = Log()

    async def main() -> None:
        guard = make_guard(log)
        client = Client(log, REQUEST)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            log((await receive())["type"])
            await send(START)
            await send(LAST)
            client.says(DISCONNECT)
            for _ in range(3):
                log((await receive())["type"])

        await call(guard, app, client, log)

    run(backend, main)

    assert [line for line in log if not line.startswith("send")] == [
        "http.request",
        *["http.disconnect"] * 3,
        "server: returned",
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_upload_is_read_at_the_apps_pace(backend: str) -> None:
    """No more than one message is read ahead of the app, whatever is there to read: back-pressure
    on uploads stays what it was. The body arrives complete and in order."""
    log = Log()

    async def main() -> list[int]:
        guard = make_guard(log)
        parts = [{"type": "http.request", "body": b"%d" % n, "more_body": n < 4} for n in range(5)]
        client = Client(log, *parts)
        ahead = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await settle()
            for read in range(5):
                await settle()
                ahead.append(client.asked - read)
                assert await receive() == parts[read]

        await call(guard, app, client, log)
        return ahead

    ahead = run(backend, main)

    assert max(ahead) <= 1
    assert log == ["server: returned"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_receive_that_raises_is_the_apps_to_see(backend: str) -> None:
    """If the server's ``receive`` raises, whoever asks gets that exception, and nobody waits for
    ever."""
    log = Log()

    async def main() -> None:
        guard = make_guard(log)
        client = Client(log, OSError("connection is lost"))

        async def app(scope: Any, receive: Any, send: Any) -> None:
            with anyio.fail_after(5):
                try:
                    await receive()
                except OSError as exc:
                    log(f"app got {exc}")

        await call(guard, app, client, log)

    run(backend, main)

    assert log == ["app got connection is lost", "server: returned"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_starlette_view_that_reads_its_body(backend: str) -> None:
    """The usual way: read the body, answer. Nothing is different."""
    log = Log()

    async def main() -> None:
        guard = make_guard(log)
        client = Client(log, {"type": "http.request", "body": b"hello", "more_body": False})

        async def view(request: Request) -> Any:
            log(f"body {(await request.body())!r}")
            assert not await request.is_disconnected()
            return PlainTextResponse("ok")

        app = Starlette(routes=[Route("/orders", view)])
        await call(guard, app, client, log)

    run(backend, main)

    assert log == [
        "body b'hello'",
        "send http.response.start",
        "send http.response.body",
        "server: returned",
    ]


def _script(name: str) -> Callable[[Play], Awaitable[None]]:
    return ENDINGS[name]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in ENDINGS
        # in these the client leaves, which is the one thing that is to be different
        if "disconnect" not in name and "client_leaves" not in name
    ],
)
def test_every_other_ending_is_as_without_it(name: str, backend: str) -> None:
    """Apart from the client's leaving, every ending is what it is for the bare app: the same
    exception object, the same messages, the callbacks once."""
    plays = []
    for guarded in (False, True):

        async def script(guarded: bool = guarded) -> Play:
            play = Play(guarded=guarded)
            play.guard.cancel_on_disconnect = True
            await ENDINGS[name](play)
            return play

        plays.append(run(backend, script))
    bare, guarded_play = plays

    def without_receive(log: Log) -> list[str]:  # which is read ahead
        return [line for line in log if not line.startswith("receive")]

    expected = without_receive(bare.log)
    assert without_receive(guarded_play.log) == [
        *expected[:-1],
        *guarded_play.callbacks(),
        expected[-1],
    ]
    sent = [message for way, message in bare.wire if way == "send"]
    assert [message for way, message in guarded_play.wire if way == "send"] == sent
    if guarded_play.raised is not None:
        identical = bare.outcome is bare.raised
        assert (guarded_play.outcome is guarded_play.raised) == identical
    assert frames(guarded_play.outcome) == frames(bare.outcome)
    assert chain(guarded_play.outcome) == chain(bare.outcome)
