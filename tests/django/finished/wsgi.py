"""Every way a server can treat a response of Django under WSGI. Prints what happened, as JSON.

``python -m tests.django.finished.wsgi``
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import django

from tests.django.finished import project

Script = Callable[[Any, "Exchange"], None]
ENDINGS: dict[str, tuple[str, Script, Callable[[], Any]]] = {}


class Exchange:
    """One request: the server's side of it."""

    def __init__(self, path: str) -> None:
        path, _, query = path.partition("?")
        self.environ: dict[str, Any] = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": f"/{path}",
            "QUERY_STRING": query,
            "SERVER_NAME": "test",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": "test",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        self.sent: list[str] = []
        self.client_is_gone = False

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Callable[..., Any]:
        if self.client_is_gone:
            raise OSError("the connection is closed, says the server")
        self.sent.append(status[:3])
        return lambda data: None

    def read(self, body: Any) -> None:
        for chunk in body:
            self.sent.append(chunk.decode())

    def run(self, app: Any, script: Script) -> str:
        try:
            script(app, self)
        except Exception as exc:
            return f"raises {type(exc).__name__}"
        return "returns"

    def call(self, app: Any) -> Any:
        return app(self.environ, self.start_response)


def ending(
    name: str, path: str, *, during: Callable[[], Any] = contextlib.nullcontext
) -> Callable[[Script], Script]:
    def register(script: Script) -> Script:
        ENDINGS[name] = (path, script, during)
        return script

    return register


def as_it_should(app: Any, exchange: Exchange) -> None:
    body = exchange.call(app)
    try:
        exchange.read(body)
    finally:
        body.close() if hasattr(body, "close") else None


for _name, _path in {
    "view answers": "plain",
    "async view answers": "aplain",
    "view raises": "raises",
    "middleware raises": "middleware-raises",
    "stream completes": "stream",
    "generator raises": "stream?raises=1",
}.items():
    ending(_name, _path)(as_it_should)

ending("close() raises", "unclosable")(as_it_should)
ending("view raises out of Django", "raises", during=project.errors_leave_django)(as_it_should)
ending("a receiver raises", "plain", during=project.failing_receiver)(as_it_should)


@ending("start_response raises", "plain")
def _start_response_raises(app: Any, exchange: Exchange) -> None:
    exchange.client_is_gone = True
    as_it_should(app, exchange)


@ending("start_response raises, for a stream", "stream")
def _start_response_raises_for_a_stream(app: Any, exchange: Exchange) -> None:
    exchange.client_is_gone = True
    as_it_should(app, exchange)


def never_closed(app: Any, exchange: Exchange) -> None:
    exchange.read(exchange.call(app))


ending("never closed", "plain")(never_closed)
ending("stream never closed", "stream")(never_closed)
ending("stream that raises never closed", "stream?raises=1")(never_closed)


@ending("stream dropped after the first chunk", "stream")
def _dropped(app: Any, exchange: Exchange) -> None:
    body = iter(exchange.call(app))
    exchange.sent.append(next(body).decode())


@ending("stream closed after the first chunk", "stream")
def _closed_early(app: Any, exchange: Exchange) -> None:
    body = exchange.call(app)
    exchange.sent.append(next(iter(body)).decode())
    body.close()


@ending("never read", "stream")
def _never_read(app: Any, exchange: Exchange) -> None:
    exchange.call(app).close()


def closed_twice(app: Any, exchange: Exchange) -> None:
    body = exchange.call(app)
    exchange.read(body)
    for _ in range(2):
        if hasattr(body, "close"):
            body.close()


ending("closed twice", "plain")(closed_twice)
ending("stream closed twice", "stream")(closed_twice)


def in_another_thread(func: Callable[[], object]) -> None:
    thread = threading.Thread(target=func)
    thread.start()
    thread.join()


def closed_elsewhere(app: Any, exchange: Exchange) -> None:
    body = exchange.call(app)
    exchange.read(body)
    in_another_thread(getattr(body, "close", lambda: None))


ending("closed in another thread", "plain")(closed_elsewhere)
ending("stream closed in another thread", "stream")(closed_elsewhere)


@ending("stream read and closed in another thread", "stream")
def _read_elsewhere(app: Any, exchange: Exchange) -> None:
    body = exchange.call(app)

    def rest() -> None:
        exchange.read(body)
        body.close()

    in_another_thread(rest)


@ending("a middleware does not pass close() on", "stream")
def _not_passed_on(app: Any, exchange: Exchange) -> None:
    def forgetful(body: Any) -> Any:
        yield from body

    body = forgetful(exchange.call(app))
    exchange.read(body)
    body.close()


def main() -> dict[str, Any]:
    from django.core.wsgi import get_wsgi_application

    app = get_wsgi_application()
    if project.GUARDED:
        import lifeguard

        app = lifeguard.wrap(app)
    results = {}
    for name, (path, script, during) in ENDINGS.items():
        project.log.clear()
        exchange = Exchange(path)
        with during():
            how = exchange.run(app, script)
        results[name] = {"how": how, "sent": exchange.sent, "log": list(project.log)}
    return results


if __name__ == "__main__":
    gc.disable()
    warnings.simplefilter("ignore")  # that a server has dropped a response: it is known
    logging.disable(logging.CRITICAL)
    json.dump({"django": django.get_version(), "endings": main()}, sys.stdout)
