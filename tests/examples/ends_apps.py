"""The two apps of server_ends: each request notes its begin and its end, each worker likewise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio

import lifeguard
from tests.support.eventlog import EventLog

SLOW = 8.0
log = EventLog.from_env()


@lifeguard.resource
def resource() -> Iterator[None]:
    log.write("open")
    yield
    log.write("close")


def begin() -> None:
    log.write("begin")
    lifeguard.callback(log.write, "end")


async def hello(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise RuntimeError("only http here")
    begin()
    if scope["path"] == "/slow":
        await anyio.sleep(SLOW)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def hello_wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    begin()
    if environ["PATH_INFO"] == "/slow":
        time.sleep(SLOW)
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]


app = lifeguard.wrap(hello)
wsgi_app = lifeguard.wrap(hello_wsgi)
