"""Every way a request to Django can end under ASGI, played by hand. Prints what happened, as JSON.

``python -m tests.django.finished.asgi``
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import django

from tests.django.finished import project
from tests.django.finished.project import gate, happened, until

Script = Callable[["Exchange"], Awaitable[None]]
ENDINGS: dict[str, tuple[str, Script, Callable[[], Any]]] = {}

DISCONNECT = {"type": "http.disconnect"}
timers: list[threading.Timer] = []


class Exchange:
    """One request: the server's side of it."""

    def __init__(self, path: str) -> None:
        path, _, query = path.partition("?")
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "http",
            "method": "GET",
            "path": f"/{path}",
            "raw_path": f"/{path}".encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(b"host", b"test")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[str] = []
        self.send_fails_after: int | None = None
        self.send_hangs = False
        self.hangs = False
        self.task: asyncio.Task[None]

    async def send(self, message: dict[str, Any]) -> None:
        if self.send_fails_after is not None and len(self.sent) >= self.send_fails_after:
            raise OSError("the connection is closed, says the server")
        if self.send_hangs:
            self.hangs = True
            await asyncio.Event().wait()
        shown = message.get("status", message.get("body", b""))
        self.sent.append(shown.decode() if isinstance(shown, bytes) else str(shown))
        await asyncio.sleep(0)

    def body(self, body: bytes = b"", *, more: bool = False) -> None:
        self.inbox.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def leave(self) -> None:
        """The client is gone. Django 4.2 does not want to know, and is to come to an end."""
        self.inbox.put_nowait(DISCONNECT)
        if django.VERSION < (5,):
            gate.set()

    async def run(self, app: Any, script: Script) -> str:
        """How the app ended, as the server sees it."""
        self.task = asyncio.create_task(app(self.scope, self.inbox.get, self.send))
        playing = asyncio.create_task(script(self))
        await asyncio.wait((self.task,), timeout=project.GIVE_UP)
        playing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await playing
        if not self.task.done():
            return "does not end"
        if self.task.cancelled():
            return "cancelled"
        error = self.task.exception()
        return "returns" if error is None else f"raises {type(error).__name__}"


def ending(
    name: str, path: str, *, during: Callable[[], Any] = contextlib.nullcontext
) -> Callable[[Script], Script]:
    def register(script: Script) -> Script:
        ENDINGS[name] = (path, script, during)
        return script

    return register


async def just_ask(exchange: Exchange) -> None:
    exchange.body()


for _name, _path in {
    "sync view answers": "plain",
    "async view answers": "aplain",
    "sync view raises": "raises",
    "async view raises": "araises",
    "sync middleware raises": "middleware-raises",
    "async middleware raises": "async-middleware-raises",
    "sync middleware raises, late": "middleware-raises-late",
    "view raises CancelledError": "cancelled",
    "sync stream completes": "stream",
    "async stream completes": "astream",
    "sync generator raises": "stream?raises=1",
    "async generator raises": "astream?raises=1",
    "the query string is not UTF-8": "plain?\udcff",
}.items():
    ending(_name, _path)(just_ask)

ending("sync view raises out of Django", "raises", during=project.errors_leave_django)(just_ask)
ending("async view raises out of Django", "araises", during=project.errors_leave_django)(just_ask)
ending("a receiver raises", "plain", during=project.failing_receiver)(just_ask)
ending("generator and receiver raise", "astream?raises=1", during=project.failing_receiver)(
    just_ask
)


@ending("send raises", "plain")
async def _send_raises(exchange: Exchange) -> None:
    exchange.send_fails_after = 0
    exchange.body()


@ending("send raises at the body", "aplain")
async def _send_raises_at_the_body(exchange: Exchange) -> None:
    exchange.send_fails_after = 1
    exchange.body()


@ending("send raises in a stream", "astream")
async def _send_raises_in_a_stream(exchange: Exchange) -> None:
    exchange.send_fails_after = 2
    exchange.body()


@ending("send raises in a sync stream", "stream")
async def _send_raises_in_a_sync_stream(exchange: Exchange) -> None:
    exchange.send_fails_after = 2
    exchange.body()


@ending("server cancels in an async view", "awaits")
async def _cancels_in_an_async_view(exchange: Exchange) -> None:
    exchange.body()
    await until(lambda: happened("working"))
    exchange.task.cancel()


@ending("server cancels in a sync view", "waits")
async def _cancels_in_a_sync_view(exchange: Exchange) -> None:
    exchange.body()
    await until(lambda: happened("working"))
    open_the_gate_soon()
    exchange.task.cancel()


@ending("server cancels twice in a sync view", "waits")
async def _cancels_twice(exchange: Exchange) -> None:
    exchange.body()
    await until(lambda: happened("working"))
    open_the_gate_soon()
    exchange.task.cancel()
    await settle()
    exchange.task.cancel()


@ending("server cancels in a stream", "astream?stays=1")
async def _cancels_in_a_stream(exchange: Exchange) -> None:
    exchange.body()
    await until(lambda: happened("working"))
    exchange.task.cancel()


@ending("client leaves in an async view", "awaits")
async def _leaves_in_an_async_view(exchange: Exchange) -> None:
    exchange.body()
    await until(lambda: happened("working"))
    exchange.leave()


@ending("client leaves in a sync view", "waits")
async def _leaves_in_a_sync_view(exchange: Exchange) -> None:
    exchange.body()
    await until(lambda: happened("working"))
    exchange.leave()
    await settle()
    gate.set()


@ending("client leaves in a stream", "astream?stays=1")
async def _leaves_in_a_stream(exchange: Exchange) -> None:
    exchange.body()
    await until(lambda: happened("working"))
    exchange.leave()


@ending("client leaves in the body", "upload")
async def _leaves_in_the_body(exchange: Exchange) -> None:
    exchange.body(b"abc", more=True)
    exchange.inbox.put_nowait(DISCONNECT)


@ending("the body is too large", "upload")
async def _too_large(exchange: Exchange) -> None:
    exchange.scope["method"] = "POST"
    exchange.body(b"x" * 2000)


def open_the_gate_soon() -> None:
    """From a thread: asgiref before 3.12 stops the loop until the view has returned."""
    timer = threading.Timer(0.1, gate.set)
    timer.start()
    timers.append(timer)


@ending("server cancels while send hangs", "aplain")
async def _cancels_while_send_hangs(exchange: Exchange) -> None:
    exchange.send_hangs = True
    exchange.body()
    await until(lambda: exchange.hangs)
    exchange.task.cancel()


@ending("server cancels while a receiver runs", "plain", during=lambda: project.receivers("wait"))
async def _cancels_while_a_receiver_runs(exchange: Exchange) -> None:
    exchange.body()
    await until(lambda: happened("working"))
    open_the_gate_soon()
    exchange.task.cancel()


@ending("client leaves in a sync stream", "stream?stays=1")
async def _leaves_in_a_sync_stream(exchange: Exchange) -> None:
    exchange.body()
    await until(lambda: happened("working"))
    open_the_gate_soon()
    exchange.leave()


ending("close() raises", "unclosable")(just_ask)
ending(
    "a receiver raises at the start",
    "plain",
    during=lambda: project.receivers("fail_at_the_start"),
)(just_ask)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def main() -> dict[str, Any]:
    from django.core.asgi import get_asgi_application

    app = get_asgi_application()
    if project.GUARDED:
        import lifeguard

        app = lifeguard.wrap(app)
    await Exchange("plain").run(app, just_ask)  # opens the worker, and its tasks stay
    results = {}
    for name, (path, script, during) in ENDINGS.items():
        project.log.clear()
        gate.clear()
        exchange = Exchange(path.removesuffix("\udcff"))
        if path.endswith("\udcff"):
            exchange.scope["query_string"] = b"\xff"
        tasks = asyncio.all_tasks()
        with during():
            how = await exchange.run(app, script)
        sent = exchange.sent.copy()
        while timers:
            await asyncio.to_thread(timers.pop().join)
        # Some Djangos return, and leave a thread or a task behind that goes on.
        gate.set()
        exchange.inbox.put_nowait(DISCONNECT)
        if left := asyncio.all_tasks() - tasks:
            await asyncio.wait(left, timeout=project.GIVE_UP)
        if path == "waits":
            await until(lambda: happened("left"))
        results[name] = {"how": how, "sent": sent, "log": list(project.log)}
    return results


if __name__ == "__main__":
    gc.disable()
    logging.disable(logging.CRITICAL)
    results = asyncio.run(main())
    json.dump({"django": django.get_version(), "endings": results}, sys.stdout)
