"""A Django project whose every step goes into one list, in order.

It runs in a process of its own, with the Django that the environment names, bare or guarded.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import django
from asgiref.sync import sync_to_async
from django.conf import settings

from tests.django.databases import database
from tests.support.eventlog import thread_mark

GUARDED = os.environ["FINISHED_SIDE"] == "guarded"
GIVE_UP = 10.0

settings.configure(
    SECRET_KEY="test",
    ALLOWED_HOSTS=["*"],
    USE_TZ=True,
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[f"{__name__}.Raises", f"{__name__}.araises", f"{__name__}.Reads"],
    INSTALLED_APPS=["lifeguard.django"] if GUARDED else [],
    DATA_UPLOAD_MAX_MEMORY_SIZE=1000,
    LOGGING_CONFIG=None,
    # So that the connection is still there for those who look at the very end.
    DATABASES={"default": database(os.environ["FINISHED_DSN"], CONN_MAX_AGE=60)},
    LIFEGUARD={"LANES": 2},
)
django.setup()

from django.core.signals import request_finished, request_started  # noqa: E402
from django.db import connection  # noqa: E402
from django.http import HttpResponse, StreamingHttpResponse  # noqa: E402
from django.urls import path  # noqa: E402
from django.utils.decorators import async_only_middleware  # noqa: E402
from django.utils.deprecation import MiddlewareMixin  # noqa: E402

log: list[dict[str, Any]] = []
gate = threading.Event()


def note(event: str) -> None:
    """What happened, in which thread, and on which connection if that thread has one."""
    backend = connection.connection and connection.connection.info.backend_pid
    log.append({"event": event, "thread": thread_mark(), "backend": backend})


def happened(event: str) -> bool:
    return any(entry["event"] == event for entry in log)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + GIVE_UP
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {[e['event'] for e in log]}"
        await asyncio.sleep(0.001)


# -- signals --------------------------------------------------------------------------------------


class Receivers:
    """Of both signals. They fail, or wait, if told to."""

    fail = False
    fail_at_the_start = False
    wait = False

    @classmethod
    def started(cls, **kwargs: Any) -> None:
        note("started")
        if cls.fail_at_the_start:
            raise RuntimeError("a receiver, as asked")

    @classmethod
    def first(cls, **kwargs: Any) -> None:
        note("finished")
        if cls.wait:
            note("working")
            assert gate.wait(GIVE_UP)

    @classmethod
    def second(cls, **kwargs: Any) -> None:
        if cls.fail:
            raise RuntimeError("a receiver, as asked")

    @staticmethod
    def third(**kwargs: Any) -> None:
        note("finished, last receiver")


request_started.connect(Receivers.started)
request_finished.connect(Receivers.first)
request_finished.connect(Receivers.second)
request_finished.connect(Receivers.third)

# -- responses and middleware ---------------------------------------------------------------------


class Noted:
    """A response that says when it is closed, and what it closes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._resource_closers.append(lambda: note("closer"))

    def close(self) -> None:
        note("close")
        super().close()


class Response(Noted, HttpResponse):
    pass


class Unclosable(Response):
    def close(self) -> None:
        note("close")
        raise RuntimeError("as asked")


class Streaming(Noted, StreamingHttpResponse):
    pass


class Raises(MiddlewareMixin):
    def process_request(self, request: Any) -> None:
        if request.path == "/middleware-raises":
            ask()
            raise RuntimeError("as asked")


@async_only_middleware
def araises(get_response: Any) -> Any:
    async def middleware(request: Any) -> Any:
        if request.path == "/async-middleware-raises":
            await aask()
            raise RuntimeError("as asked")
        return await get_response(request)

    return middleware


class Reads(MiddlewareMixin):
    def process_response(self, request: Any, response: Any) -> Any:
        if request.path == "/middleware-raises-late":
            ask()
            raise RuntimeError("as asked")
        return response


# -- views ----------------------------------------------------------------------------------------


def ask() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    note("query")


aask = sync_to_async(ask)


def plain(request: Any) -> HttpResponse:
    ask()
    return Response("ok")


async def aplain(request: Any) -> HttpResponse:
    await aask()
    return Response("ok")


def raises(request: Any) -> HttpResponse:
    ask()
    raise RuntimeError("as asked")


async def araises_view(request: Any) -> HttpResponse:
    await aask()
    raise RuntimeError("as asked")


def unclosable(request: Any) -> HttpResponse:
    ask()
    return Unclosable("ok")


async def cancelled(request: Any) -> HttpResponse:
    await aask()
    raise asyncio.CancelledError


def waits(request: Any) -> HttpResponse:
    ask()
    note("working")
    assert gate.wait(GIVE_UP)
    ask()
    note("left")
    return Response("ok")


async def awaits(request: Any) -> HttpResponse:
    await aask()
    note("working")
    try:
        await until(gate.is_set)
    finally:
        await aask()
        note("left")
    return Response("late")


def upload(request: Any) -> HttpResponse:
    ask()
    return Response(str(len(request.body)))


def stream(request: Any) -> StreamingHttpResponse:
    def chunks() -> Iterator[bytes]:
        try:
            for number in range(3):
                ask()
                yield b"%d" % number
                if "stays" in request.GET and not number:
                    note("working")
                    assert gate.wait(GIVE_UP)
                if number and "raises" in request.GET:
                    raise RuntimeError("as asked")
        finally:
            note("end of the generator")

    return Streaming(chunks())


async def astream(request: Any) -> StreamingHttpResponse:
    async def chunks() -> AsyncIterator[bytes]:
        try:
            for number in range(3):
                await aask()
                yield b"%d" % number
                if "stays" in request.GET:
                    note("working")
                    await until(gate.is_set)
                if number and "raises" in request.GET:
                    raise RuntimeError("as asked")
        finally:
            await aask()
            note("end of the generator")

    return Streaming(chunks())


urlpatterns = [
    path("plain", plain),
    path("aplain", aplain),
    path("raises", raises),
    path("araises", araises_view),
    path("cancelled", cancelled),
    path("unclosable", unclosable),
    path("waits", waits),
    path("awaits", awaits),
    path("upload", upload),
    path("stream", stream),
    path("astream", astream),
    path("middleware-raises", plain),
    path("async-middleware-raises", plain),
    path("middleware-raises-late", plain),
]


@contextlib.contextmanager
def receivers(what: str) -> Iterator[None]:
    setattr(Receivers, what, True)
    try:
        yield
    finally:
        setattr(Receivers, what, False)


def failing_receiver() -> contextlib.AbstractContextManager[None]:
    return receivers("fail")


@contextlib.contextmanager
def errors_leave_django() -> Iterator[None]:
    settings.DEBUG_PROPAGATE_EXCEPTIONS = True
    try:
        yield
    finally:
        settings.DEBUG_PROPAGATE_EXCEPTIONS = False
