"""Drives apps as servers do, without the server: its noise would drown what is measured.

An ASGI request gets a scope, a state dict and a copy of the context of its own, as every server
gives it, and its coroutine is stepped by hand inside a running event loop: a task per request costs
ten times what is measured here. A WSGI request gets an environ of its own and its thread's one
context, as threaded servers give it.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice, repeat
from time import perf_counter_ns
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bench._measure import Run, Variant

__all__ = [
    "BODY",
    "START",
    "Host",
    "asgi_host",
    "asgi_task_variant",
    "asgi_variant",
    "bare_app",
    "context_with",
    "contexts_with",
    "in_contexts",
    "receive",
    "send",
    "served",
    "wsgi_variant",
]

START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-length", b"2")],
}
BODY: Message = {"type": "http.response.body", "body": b"ok"}
_SCOPE: Scope = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "server": ("127.0.0.1", 8000),
    "client": ("127.0.0.1", 50000),
    "scheme": "http",
    "method": "GET",
    "root_path": "",
    "path": "/",
    "raw_path": b"/",
    "query_string": b"",
    "headers": [(b"host", b"127.0.0.1:8000")],
}
_ENVIRON: WSGIEnvironment = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/",
    "QUERY_STRING": "",
    "SERVER_NAME": "127.0.0.1",
    "SERVER_PORT": "8000",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "127.0.0.1",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.multithread": True,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
}


async def bare_app(scope: Scope, receive: Receive, send: Send) -> None:
    """The smallest app that answers; all others differ from it by the one thing measured."""
    if scope["type"] != "http":
        raise ValueError("this app speaks http only")
    await send(START)
    await send(BODY)


async def receive() -> Message:
    return {"type": "http.disconnect"}


async def send(message: Message) -> None:
    pass


def context_with(variables: int) -> contextvars.Context:
    """A context with so many variables of other libraries (tracing, logging, i18n)."""
    context = contextvars.Context()
    for number in range(variables):
        context.run(contextvars.ContextVar[int](f"other{number}").set, number)
    return context


def contexts_with(variables: int) -> cycle[contextvars.Context]:
    """Many such contexts, in turn, each with variables of its own.

    A context is a hash trie of its variables, keyed by their address: whether two collide makes a
    tenth of a microsecond, and is luck. So luck is averaged.
    """
    return cycle([context_with(variables) for _ in range(64)])


def in_contexts(variables: int, run: Run) -> Run:
    """``run``, its operations shared out among such contexts: those of a server's threads."""
    contexts = contexts_with(variables)

    def shared_out(count: int) -> int:
        share = -(-count // 16)
        shares = [min(share, count - done) for done in range(0, count, share)]
        return sum(next(contexts).run(run, each) for each in shares)

    return shared_out


@dataclass
class Host:
    """An ASGI app, and what its requests find in their scope as state and as framework."""

    app: ASGIApp
    state: dict[str, Any] = field(default_factory=lambda: {"pool": None})
    framework: object = None

    def scope(self) -> Scope:
        scope = dict(_SCOPE)
        scope["app"] = self.framework
        scope["state"] = self.state.copy()
        return scope

    def request(self) -> Coroutine[Any, Any, None]:
        # Every ASGI app is a coroutine function; the types only promise an awaitable.
        return self.app(self.scope(), receive, send)  # type: ignore[return-value]


Prepare = Callable[[AsyncExitStack], Awaitable[Host]]


def asgi_host(stack: ExitStack, prepare: Prepare) -> tuple[asyncio.Runner, Host]:
    """A loop, and the app brought up in it; both end with the stack."""
    runner = stack.enter_context(asyncio.Runner())
    astack = AsyncExitStack()
    stack.callback(lambda: runner.run(astack.aclose()))

    async def bring_up() -> Host:
        return await prepare(astack)

    return runner, runner.run(bring_up())


def asgi_variant(name: str, prepare: Prepare, *, variables: int = 3) -> Variant:
    """Requests stepped by hand in a loop, each in a copy of a context with so many variables."""

    def start(stack: ExitStack) -> Run:
        runner, host = asgi_host(stack, prepare)
        contexts = contexts_with(variables)

        def request() -> None:
            coroutine = host.request()
            try:
                coroutine.send(None)
            except StopIteration:
                return
            raise RuntimeError("the app waited for something, which this driver cannot give it")

        async def requests(count: int) -> int:
            start = perf_counter_ns()
            for context in islice(contexts, count):
                context.copy().run(request)
            return perf_counter_ns() - start

        return lambda count: runner.run(requests(count))

    return Variant(name, start)


def asgi_task_variant(name: str, prepare: Prepare, *, variables: int = 3) -> Variant:
    """The same with a task per request: noisier, to check that stepping hides nothing."""

    def start(stack: ExitStack) -> Run:
        runner, host = asgi_host(stack, prepare)
        contexts = contexts_with(variables)

        async def requests(count: int) -> int:
            create_task = asyncio.get_running_loop().create_task
            start = perf_counter_ns()
            for context in islice(contexts, count):
                await create_task(host.request(), context=context.copy())
            return perf_counter_ns() - start

        return lambda count: runner.run(requests(count))

    return Variant(name, start)


@asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[None]:
    """Take ``app`` through its lifespan as a server does: startup here, shutdown at the end."""
    inbox: asyncio.Queue[Message] = asyncio.Queue()
    outbox: asyncio.Queue[Message] = asyncio.Queue()
    scope: Scope = {"type": "lifespan", "asgi": _SCOPE["asgi"], "state": {}}

    async def put(message: Message) -> None:
        outbox.put_nowait(message)

    async def live() -> None:
        await app(scope, inbox.get, put)

    async def step(name: str) -> None:
        inbox.put_nowait({"type": f"lifespan.{name}"})
        answer = asyncio.create_task(outbox.get())
        await asyncio.wait({answer, task}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done() or answer.result()["type"] != f"lifespan.{name}.complete":
            answer.cancel()
            raise RuntimeError(f"lifespan.{name} of {app!r} did not complete")

    task = asyncio.create_task(live())
    await step("startup")
    try:
        yield
    finally:
        await step("shutdown")
        await task


def wsgi_variant(name: str, prepare: Callable[[], WSGIApplication]) -> Variant:
    """Requests made as a threaded server makes them: call, iterate, close."""

    def write(chunk: bytes) -> object:
        return None

    def start_response(
        status: str, headers: Any, exc_info: Any = None, /
    ) -> Callable[[bytes], object]:
        return write

    def start(stack: ExitStack) -> Run:
        app = prepare()

        def request(start_response: StartResponse) -> None:
            body: Iterable[bytes] = app(_ENVIRON.copy(), start_response)
            try:
                for chunk in body:
                    write(chunk)
            finally:
                close = getattr(body, "close", None)
                if close is not None:
                    close()

        def requests(count: int) -> int:
            start = perf_counter_ns()
            for _ in repeat(None, count):
                request(start_response)
            return perf_counter_ns() - start

        return in_contexts(3, requests)

    return Variant(name, start)
