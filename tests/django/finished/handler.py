"""What Django's handler promises its callers, asked of the wrapped app. Prints JSON.

``python -m tests.django.finished.handler``
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import tempfile
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.core.asgi import get_asgi_application
from django.db import connection, transaction
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.urls import path

from tests.django.finished import project
from tests.django.finished.asgi import DISCONNECT, Exchange
from tests.django.finished.project import happened, note, until

Check = Callable[[Any], Awaitable[None]]
CHECKS: dict[str, Check] = {}


def check(func: Check) -> Check:
    CHECKS[func.__name__] = func
    return func


def view(func: Callable[..., Any]) -> Callable[..., Any]:
    project.urlpatterns.append(path(func.__name__, func))
    return func


class Call(ApplicationCommunicator):
    """One request to the app, message by message."""

    def __init__(self, app: Any, path: str, **scope: Any) -> None:
        super().__init__(app, Exchange(path).scope | scope)

    async def ask(self, body: bytes = b"", *, more: bool = False) -> None:
        await self.send_input({"type": "http.request", "body": body, "more_body": more})

    async def answer(self) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """The whole response; then the app has to end."""
        start = await self.receive_output(5)
        body, more = b"", True
        while more:
            message = await self.receive_output(5)
            body += message.get("body", b"")
            more = message.get("more_body", False)
        await self.wait(5)
        return start["status"], start["headers"], body


async def get(app: Any, path: str, **scope: Any) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    call = Call(app, path, **scope)
    await call.ask()
    return await call.answer()


# -- requests and responses -----------------------------------------------------------------------


@view
def hello(request: Any) -> HttpResponse:
    response = HttpResponse(f"Hello {request.GET.get('name', 'World')}")
    response.set_cookie("first", "1")
    response.set_cookie("second", "2")
    return response


@check
async def an_answer_is_complete(app: Any) -> None:
    status, headers, body = await get(app, "hello?name=Anna")
    assert (status, body) == (200, b"Hello Anna")
    assert (b"Content-Type", b"text/html; charset=utf-8") in headers
    cookies = [value for name, value in headers if name == b"Set-Cookie"]
    assert cookies == [b"first=1; Path=/", b"second=2; Path=/"]


@view
def referers(request: Any) -> HttpResponse:
    return HttpResponse(request.headers["referer"])


@check
async def headers_that_repeat_are_joined(app: Any) -> None:
    headers = [(b"host", b"test"), (b"referer", b"here"), (b"referer", b"there")]
    assert (await get(app, "referers", headers=headers))[2] == b"here,there"


_streams: list[Any] = []


@view
def echo(request: Any) -> HttpResponse:
    _streams.append(request._stream)
    return HttpResponse(request.body)


@view
def ignore(request: Any) -> HttpResponse:
    _streams.append(request._stream)
    return HttpResponse(status=204)


@check
async def a_body_arrives_in_pieces(app: Any) -> None:
    call = Call(app, "echo", method="POST")
    await call.ask(b"one ", more=True)
    await call.ask(b"two ", more=True)
    await call.ask(b"three")
    assert (await call.answer())[2] == b"one two three"


@check
async def a_body_larger_than_memory_arrives(app: Any) -> None:
    call = Call(app, "echo", method="POST")
    await call.ask(b"x" * 300, more=True)
    await call.ask(b"y" * 300)
    assert (await call.answer())[2] == b"x" * 300 + b"y" * 300


@check
async def a_body_is_closed_whether_it_was_read_or_not(app: Any) -> None:
    for name in ("echo", "ignore"):
        _streams.clear()
        call = Call(app, name, method="POST")
        await call.ask(b"abc")
        await call.answer()
        assert [stream.closed for stream in _streams] == [True]


@check
async def another_type_of_connection_is_refused(app: Any) -> None:
    call = Call(app, "hello", type="other")
    await call.ask()
    with pytest.raises(ValueError, match="can only handle ASGI/HTTP connections, not other"):
        await call.receive_output(5)


SOURCE = Path(__file__).read_bytes()
_files: list[Any] = []


@view
def download(request: Any) -> FileResponse:
    file = Path(__file__).open("rb")  # noqa: SIM115
    _files.append(file)
    return FileResponse(file)


@check
async def a_file_is_sent_and_closed(app: Any) -> None:
    assert (await get(app, "download"))[2] == SOURCE
    assert [file.closed for file in _files] == [True]


# -- streams --------------------------------------------------------------------------------------

_next = asyncio.Event()


@view
async def slowly(request: Any) -> StreamingHttpResponse:
    async def chunks() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            note("waits")
            await _next.wait()
            yield b"second"
        except asyncio.CancelledError:
            note("generator cancelled")
            raise

    return StreamingHttpResponse(chunks())


@check
async def a_stream_arrives_as_it_is_made(app: Any) -> None:
    _next.clear()
    call = Call(app, "slowly")
    await call.ask()
    assert (await call.receive_output(5))["status"] == 200
    assert (await call.receive_output(5))["body"] == b"first"
    assert await call.receive_nothing(0.05)
    _next.set()
    assert (await call.receive_output(5))["body"] == b"second"
    assert (await call.receive_output(5)).get("more_body", False) is False
    await call.wait(5)


@check
async def a_stream_ends_when_its_client_leaves(app: Any) -> None:
    _next.clear()
    call = Call(app, "slowly")
    await call.ask()
    await until(lambda: happened("waits"))
    await call.send_input(DISCONNECT)
    await call.wait(5)
    assert happened("generator cancelled")


# -- disconnects and cancellation -----------------------------------------------------------------


@check
async def nothing_happens_without_a_body(app: Any) -> None:
    call = Call(app, "hello")
    await call.send_input(DISCONNECT)
    await call.wait(5)
    assert await call.receive_nothing(0.01)
    assert not happened("started")


@view
async def patient(request: Any) -> HttpResponse:
    note("waits")
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        note("view cancelled")
        raise
    return HttpResponse("never")


@check
async def a_view_is_cancelled_when_its_client_leaves(app: Any) -> None:
    call = Call(app, "patient")
    await call.ask()
    await until(lambda: happened("waits"))
    await call.send_input(DISCONNECT)
    await call.wait(5)
    assert happened("view cancelled")
    assert await call.receive_nothing(0.01)


@view
async def catches(request: Any) -> HttpResponse:
    note("waits")
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(30)
    await project.aask()
    note("cleaned up")
    return HttpResponse("too late")


@check
async def a_view_may_clean_up_after_a_disconnect(app: Any) -> None:
    call = Call(app, "catches")
    await call.ask()
    await until(lambda: happened("waits"))
    await call.send_input(DISCONNECT)
    await call.wait(5)
    events = [entry["event"] for entry in project.log]
    assert events.index("cleaned up") < events.index("finished")


# -- threads and contexts -------------------------------------------------------------------------


@check
async def a_request_has_one_thread(app: Any) -> None:
    await get(app, "plain")
    threads = {entry["event"]: entry["thread"] for entry in project.log}
    assert threads["started"] == threads["query"] == threads["finished"]
    assert threads["query"] != project.thread_mark()  # it is not the event loop's


_two = threading.Barrier(2)


@view
def together(request: Any) -> HttpResponse:
    _two.wait(5)
    return HttpResponse("met")


@check
async def requests_run_beside_each_other(app: Any) -> None:
    answers = await asyncio.gather(get(app, "together"), get(app, "together"))
    assert [status for status, _, _ in answers] == [200, 200]


@check
async def more_requests_than_lanes_are_all_answered(app: Any) -> None:
    answers = await asyncio.gather(*(get(app, "plain") for _ in range(12)))
    assert [body for _, _, body in answers] == [b"ok"] * 12


_told: ContextVar[str] = ContextVar("told", default="nothing")


@view
async def contexts(request: Any) -> HttpResponse:
    _told.set("by the view")

    def sync() -> str:
        before = _told.get()
        _told.set("by the thread")
        return before

    before = await sync_to_async(sync)()
    return HttpResponse(f"{before}, {_told.get()}")


@check
async def context_variables_cross_over(app: Any) -> None:
    assert (await get(app, "contexts"))[2] == b"by the view, by the thread"
    assert _told.get() == "nothing"


@view
def bridges(request: Any) -> HttpResponse:
    """Sync, async, sync, and back, in the middle of a transaction."""

    async def below() -> list[int]:
        return await asyncio.gather(*(sync_to_async(backend)() for _ in range(5)))

    with transaction.atomic():
        seen = {backend(), *async_to_sync(below)()}
    return HttpResponse(str(len(seen)))


@view
async def abridges(request: Any) -> HttpResponse:
    """A transaction that is open across calls, and tasks beside each other within it."""
    block = transaction.atomic()
    await sync_to_async(block.__enter__)()
    try:
        tasks = [asyncio.create_task(sync_to_async(backend)()) for _ in range(5)]
        seen = {await sync_to_async(backend)(), *await asyncio.gather(*tasks)}
    finally:
        await sync_to_async(block.__exit__)(None, None, None)
    return HttpResponse(str(len(seen)))


def backend() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


@check
async def bridges_and_transactions_keep_their_connection(app: Any) -> None:
    answers = await asyncio.gather(
        *(get(app, name) for _ in range(6) for name in ("bridges", "abridges"))
    )
    assert [body for _, _, body in answers] == [b"1"] * 12


async def main() -> dict[str, str | None]:
    app: Any = get_asgi_application()
    if project.GUARDED:
        import lifeguard

        app = lifeguard.wrap(app)
    results: dict[str, str | None] = {}
    for name, checked in CHECKS.items():
        project.log.clear()
        try:
            await checked(app)
            results[name] = None
        except Exception:
            results[name] = traceback.format_exc()
    return results


if __name__ == "__main__":
    project.settings.FILE_UPLOAD_MAX_MEMORY_SIZE = 100
    project.settings.FILE_UPLOAD_TEMP_DIR = tempfile.gettempdir()
    logging.disable(logging.CRITICAL)
    json.dump(asyncio.run(main()), sys.stdout)
