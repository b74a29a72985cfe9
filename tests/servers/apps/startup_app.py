"""An app whose worker takes as long to open as the test likes, for ASGI and WSGI servers."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import anyio

import lifeguard
from tests.servers.apps.common import gate_is_open, log, wait_at_gate

GATE = "startup"
guard = lifeguard.Lifeguard()


@guard.resource
def first() -> Iterator[None]:
    log.write("opened")
    yield
    log.write("closed")


if os.environ["APP_KIND"] == "wsgi":

    @guard.resource
    def slow() -> Iterator[None]:
        log.write("opening")
        wait_at_gate(GATE)
        log.write("slow opened")
        yield
        log.write("slow closed")

else:

    @guard.resource
    async def slow() -> AsyncIterator[None]:
        log.write("opening")
        while not gate_is_open(GATE):
            await anyio.sleep(0.01)
        log.write("slow opened")
        try:
            yield
        except BaseException as exc:  # cancelled in the moment when it was open: as in a `with`
            if not isinstance(exc, GeneratorExit):  # that one would be no end, but a loss
                log.write("slow closed")
            raise
        log.write("slow closed")


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


app = guard.wrap(wsgi if os.environ["APP_KIND"] == "wsgi" else asgi)
