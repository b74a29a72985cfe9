"""Every way a worker can begin and end under ASGI, and everything its lifespan can answer."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount, Route

import lifeguard
from tests.endings.server import (
    BACKENDS,
    LifespanServer,
    Log,
    Reports,
    http_only,
    in_task,
    lifespan,
    run,
    scope,
    settle,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # newer Starlettes would rather have httpx2
    from starlette.testclient import TestClient

ROOT = Path(__file__).parent.parent.parent


def make_guard(log: Log, *names: str, **options: Any) -> lifeguard.Lifeguard:
    """A guard whose resources say when they open and close."""
    guard = lifeguard.Lifeguard(
        handle_sigterm=False, observers=[Reports(log)], grace=options.pop("grace", 5), **options
    )
    for name in names:
        declare(guard, log, name)
    return guard


def declare(guard: lifeguard.Lifeguard, log: Log, name: str) -> lifeguard.Resource[str]:
    async def source() -> Any:
        log(f"{name} opens")
        yield name
        await anyio.lowlevel.checkpoint()
        log(f"{name} closes")

    source.__name__ = name
    return guard.resource(source)


class LifespanApp:
    """An app whose startup and shutdown do as they are told, and answer requests with 200."""

    def __init__(self, log: Log, startup: str = "complete", shutdown: str = "complete") -> None:
        self.log = log
        self.startup = startup
        self.shutdown = shutdown

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self.answer(scope, receive, send)
            return
        assert (await receive())["type"] == "lifespan.startup"
        await self.phase("startup", self.startup, send)
        if self.startup != "complete":
            return
        assert (await receive())["type"] == "lifespan.shutdown"
        await self.phase("shutdown", self.shutdown, send)

    async def phase(self, phase: str, how: str, send: Any) -> None:
        await anyio.lowlevel.checkpoint()
        self.log(f"app {phase} {how}")
        if how.startswith("raises"):
            raise ValueError(f"{phase} went wrong")
        message = {"type": f"lifespan.{phase}.{'failed' if 'failed' in how else 'complete'}"}
        if "failed" in how:
            message["message"] = f"{phase} is not possible"
        await send(message)
        if how == "failed, then raises":
            raise ValueError(f"{phase} went wrong")

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        self.log(f"request {scope['path']}")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


class Answer:
    """Collects what an app sends to one request."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    async def send(self, message: Any) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def body(self) -> str:
        return b"".join(m.get("body", b"") for m in self.messages).decode()


async def get(app: Any, **more: Any) -> Answer:
    answer = Answer()
    await app(scope(**more), None, answer.send)
    return answer


# -- the matrix -----------------------------------------------------------------------------------

OPENED = ["db opens", "cache opens"]
CLOSED = ["cache closes", "db closes"]
STARTED = [*OPENED, "app startup complete", "server: lifespan.startup.complete"]

#: startup, body, shutdown: what happens, in this order and nothing else.
MATRIX: dict[tuple[str, str, str], list[str]] = {
    ("complete", "ok", "complete"): [
        *STARTED,
        "app shutdown complete",
        *CLOSED,
        "server: lifespan.shutdown.complete",
        "server: app returned",
    ],
    ("complete", "ok", "raises"): [
        *STARTED,
        "app shutdown raises",
        *CLOSED,
        "server: lifespan.shutdown.failed",
        "server: app raised ValueError",
    ],
    ("complete", "ok", "failed"): [
        *STARTED,
        "app shutdown failed",
        *CLOSED,
        "server: lifespan.shutdown.failed",
        "server: app returned",
    ],
    ("complete", "ok", "failed, then raises"): [
        *STARTED,
        "app shutdown failed, then raises",
        *CLOSED,
        "server: lifespan.shutdown.failed",
        "server: app raised ValueError",
    ],
    ("complete", "cancelled", "complete"): [*STARTED, "app shutdown complete", *CLOSED],
    ("complete", "cancelled", "raises"): [*STARTED, "app shutdown raises", *CLOSED],
    ("complete", "cancelled", "failed"): [*STARTED, "app shutdown failed", *CLOSED],
    ("complete", "cancelled twice", "complete"): [*STARTED, "app shutdown complete", *CLOSED],
    ("raises", "", ""): [
        *OPENED,
        "app startup raises",
        "server: lifespan.startup.failed",
        *CLOSED,
        "server: app raised ValueError",
    ],
    ("failed", "", ""): [
        *OPENED,
        "app startup failed",
        "server: lifespan.startup.failed",
        *CLOSED,
        "server: app returned",
    ],
    ("failed, then raises", "", ""): [
        *OPENED,
        "app startup failed, then raises",
        "server: lifespan.startup.failed",
        *CLOSED,
        "server: app raised ValueError",
    ],
}

MESSAGES = {
    "raises": "ValueError: {} went wrong",
    "failed": "{} is not possible",
    "failed, then raises": "{} is not possible",
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("startup", "body", "shutdown"), MATRIX)
def test_lifespan(startup: str, body: str, shutdown: str, backend: str) -> None:
    """Resources open before the app's startup and close after its shutdown, last opened first;
    the server gets exactly one answer to each of its messages, the app's own where it has one;
    what the app raises reaches the server; a server that cancels instead of telling gets the same
    shutdown, and no message that it did not ask for."""
    log = Log()
    guard = make_guard(log, "db", "cache")

    async def main() -> LifespanServer:
        server = LifespanServer(guard.wrap(LifespanApp(log, startup, shutdown)))
        server.log = log
        async with in_task(server.main) as task:
            await server.startup()
            if body == "ok":
                server.shut_down()
            elif body.startswith("cancelled"):
                task.cancel()
                if body.endswith("twice"):
                    await anyio.lowlevel.checkpoint()
                    task.cancel()
        return server

    server = run(backend, main)

    assert log == MATRIX[startup, body, shutdown]
    assert repr(guard._worker.state) == "closed"
    for phase, how, message in zip(
        ("startup", "shutdown"), (startup, shutdown), server.messages, strict=False
    ):
        expected = MESSAGES.get(how)
        assert message.get("message") == (expected and expected.format(phase))


@pytest.mark.parametrize("backend", BACKENDS)
def test_server_that_leaves_at_the_sight_of_a_failed_startup(backend: str) -> None:
    """A server that ends its loop the moment it reads startup.failed leaves nothing open."""
    log = Log()
    guard = make_guard(log, "db")

    async def main() -> None:
        read = anyio.Event()

        async def receive() -> Any:
            return {"type": "lifespan.startup"}

        async def send(message: Any) -> None:
            log(message["type"])
            read.set()
            await anyio.sleep_forever()

        async def serve() -> None:
            await guard.wrap(LifespanApp(log, "failed"))({"type": "lifespan"}, receive, send)

        async with in_task(serve) as task:
            await read.wait()
            task.cancel()

    run(backend, main)

    assert log[:3] == ["db opens", "app startup failed", "lifespan.startup.failed"]
    assert log[3:] == ["db closes"]


# -- apps without lifespan ------------------------------------------------------------------------


async def _raises_at_sight(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise ValueError(f"cannot handle {scope['type']}")


async def _raises_after_receive(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"


async def _returns_at_once(scope: Any, receive: Any, send: Any) -> None:
    return


async def _answers_as_if_http(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def _django() -> Any:
    import django
    from django.conf import settings
    from django.core.asgi import get_asgi_application

    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"], SECRET_KEY="tests", ROOT_URLCONF=__name__)
        django.setup()
    return get_asgi_application()


urlpatterns: list[Any] = []

WITHOUT = {
    "raises-at-sight": lambda: _raises_at_sight,
    "asserts-http": lambda: _raises_after_receive,
    "returns-at-once": lambda: _returns_at_once,
    "answers-as-if-http": lambda: _answers_as_if_http,
    "django": _django,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", WITHOUT.values(), ids=WITHOUT)
def test_app_without_lifespan_is_answered_for(make: Any, backend: str) -> None:
    """A server with strict lifespan sees a complete startup and shutdown of any app, Django's
    included, and resources open and close in between."""
    log = Log()
    guard = make_guard(log, "db")

    async def main() -> LifespanServer:
        async with lifespan(guard.wrap(make())) as server:
            log("serving")
        return server

    server = run(backend, main)

    assert log == ["db opens", "serving", "db closes"]
    assert [message["type"] for message in server.messages] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    assert server.error is None


# -- failures of resources ------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_resource_that_fails_stops_the_server(backend: str) -> None:
    """The server gets startup.failed with the resource's name and the cause; what was open is
    closed, and the app's own startup never ran."""
    log = Log()
    guard = make_guard(log, "db")

    @guard.resource
    async def queue() -> Any:
        raise ConnectionRefusedError("nobody listens at queue.internal:5672")
        yield

    async def main() -> LifespanServer:
        async with lifespan(guard.wrap(LifespanApp(log))) as server:
            pass
        return server

    server = run(backend, main)

    assert log == ["db opens", "db closes"]
    (message,) = server.messages
    assert message["type"] == "lifespan.startup.failed"
    for part in ("'queue'", "test_lifespan.py", "ConnectionRefusedError", "queue.internal:5672"):
        assert part in message["message"]


@pytest.mark.parametrize("backend", ["asyncio", "uvloop"])
@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://shop:s3cret@127.0.0.1:1/orders",
        "host=127.0.0.1 port=1 dbname=orders user=shop password=s3cret",
        "host=127.0.0.1 port=1 dbname=orders user=shop password='s3cret'",
    ],
    ids=["uri", "words", "quoted"],
)
def test_unreachable_database_stops_the_server(
    dsn: str, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """startup.failed names the pool, the host and the cause, and nothing of it or of the log
    shows the password."""
    log = Log()
    guard = make_guard(log)

    async def main() -> LifespanServer:
        pool = AsyncConnectionPool(dsn, open=False, min_size=1, name="orders-pool")
        async with lifespan(guard.wrap(LifespanApp(log), resources=[pool])) as server:
            pass
        assert pool.closed
        return server

    server = run(backend, main)

    assert log == []
    (message,) = server.messages
    assert message["type"] == "lifespan.startup.failed"
    for part in ("'orders-pool'", "127.0.0.1", "port=1", "refused"):
        assert part in message["message"]
    assert "s3cret" not in message["message"] + caplog.text


@pytest.mark.parametrize("backend", BACKENDS)
def test_resource_that_fails_to_close_is_said(backend: str) -> None:
    """shutdown.failed tells the server, the other resources are closed, and it is reported."""
    log = Log()
    guard = make_guard(log, "db")

    @guard.resource
    async def cache() -> Any:
        yield
        raise OSError("cannot flush")

    async def main() -> LifespanServer:
        async with lifespan(guard.wrap(LifespanApp(log))) as server:
            pass
        return server

    server = run(backend, main)

    assert log == [
        "db opens",
        "app startup complete",
        "app shutdown complete",
        "db closes",
        "reported CloseErrors of Worker",
    ]
    assert [m["type"] for m in server.messages][-1] == "lifespan.shutdown.failed"
    assert "worker" in server.messages[-1]["message"]


# -- state ----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _state(app: Any) -> Any:
    yield {"greeting": "hello", "list": []}


async def _show_state(request: Any) -> Any:
    request.state.list.append(1)
    return JSONResponse([request.state.greeting, len(request.state.list)])


def test_state_of_the_lifespan_reaches_requests() -> None:
    """What the app's startup puts into the server's state is there in each request."""
    app = Starlette(lifespan=_state, routes=[Route("/", _show_state)])
    with TestClient(make_guard(Log()).wrap(app)) as client:
        assert client.get("/").json() == ["hello", 1]
        assert client.get("/").json() == ["hello", 2]


def test_state_where_the_server_has_no_lifespan() -> None:
    """The wrapper hands the state to each request itself, as a copy each, as servers do."""
    app = Starlette(lifespan=_state, routes=[Route("/", _show_state)])
    guard = make_guard(Log())

    async def main() -> list[str]:
        served = guard.wrap(app)
        first = scope(path="/")
        bodies = []
        for given in (first, scope(path="/"), scope(path="/", state={"greeting": "x", "list": []})):
            answer = Answer()
            await served(given, None, answer.send)
            bodies.append(answer.body)
        return bodies

    assert run("asyncio", main) == ['["hello",1]', '["hello",2]', '["x",1]']


# -- a server that never sends lifespan -----------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_requests_open_the_worker_once(backend: str) -> None:
    """Where no lifespan comes, the first request opens the worker and runs the app's startup;
    requests that come meanwhile wait for it. At the loop's end the app shuts down, then the
    resources close."""
    log = Log()
    guard = make_guard(log)

    async def main() -> None:
        opening, go_on = anyio.Event(), anyio.Event()

        @guard.resource
        async def db() -> Any:
            log("db opens")
            opening.set()
            await go_on.wait()
            yield
            log("db closes")

        served = guard.wrap(LifespanApp(log))
        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(lambda number=number: get(served, path=f"/{number}"))  # type: ignore[misc]
            await opening.wait()
            await settle()
            log("still opening")
            go_on.set()
        await get(served, path="/later")

    run(backend, main)

    assert log[:3] == ["db opens", "still opening", "app startup complete"]
    assert sorted(log[3:8]) == [f"request /{number}" for number in range(5)]
    assert log[8:] == ["request /later", "app shutdown complete", "db closes"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", ["resource", "app-raises", "app-failed"])
def test_failure_is_answered_and_tried_again(
    what: str, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If opening fails, every waiting request gets a 500 that says so (a websocket is closed with
    1011), the log has the reason, and the next request tries again: a failure is not kept."""
    log = Log()
    guard = make_guard(log)
    broken = True

    @guard.resource
    async def db() -> Any:
        log("db opens")
        if broken and what == "resource":
            raise ConnectionRefusedError("db.internal is down, password=s3cret")
        yield
        log("db closes")

    async def main() -> None:
        nonlocal broken
        app = LifespanApp(log)
        if what != "resource":
            app.startup = what.removeprefix("app-")
        served = guard.wrap(app)
        answers: list[Answer] = []

        async def request(type_: str) -> None:
            answer = Answer()
            answers.append(answer)
            await served(scope(type_), None, answer.send)

        async with anyio.create_task_group() as group:
            for type_ in ("http", "http", "websocket"):
                group.start_soon(request, type_)
        for answer in answers:
            if answer.messages[0]["type"] == "websocket.close":
                log(f"websocket {answer.messages[0]['code']}")
                continue
            log(f"http {answer.status}")
            assert "could not be opened" in answer.body
            assert "internal" not in answer.body  # the reason is for the log, not for the world
        broken, app.startup = False, "complete"
        log(f"http {(await get(served)).status}")

    run(backend, main)

    attempt = ["db opens"]
    if what != "resource":
        attempt += [f"app startup {app_word(what)}", "db closes"]
    # Tasks begin in no particular order on trio: the first opens, and the others join it.
    assert log[: len(attempt)] == attempt
    refused = log[len(attempt) : len(attempt) + 3]
    assert sorted(refused) == ["http 500", "http 500", "websocket 1011"]
    assert log[len(attempt) + 3 :] == [
        "db opens",
        "app startup complete",
        "request /orders",
        "http 200",
        "app shutdown complete",
        "db closes",
    ]
    errors = [record for record in caplog.records if record.name == "lifeguard.worker"]
    assert len(errors) == 3
    reason = {
        "resource": "db.internal is down",
        "app-raises": "startup went wrong",
        "app-failed": "startup is not possible",
    }[what]
    assert all(reason in record.getMessage() for record in errors)
    assert not any("s3cret" in record.getMessage() for record in errors)


def app_word(what: str) -> str:
    return what.removeprefix("app-")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_first_request_that_is_cancelled_does_not_stop_the_opening(backend: str) -> None:
    """The client of the very first request gives up: the others that wait still get answers, and
    the worker was opened once."""
    log = Log()
    guard = make_guard(log)

    async def main() -> None:
        opening, go_on = anyio.Event(), anyio.Event()

        @guard.resource
        async def db() -> Any:
            log("db opens")
            opening.set()
            await go_on.wait()
            yield
            log("db closes")

        served = guard.wrap(LifespanApp(log))

        async def request(path: str) -> None:
            await get(served, path=path)

        async with in_task(lambda: request("/second")):
            async with in_task(lambda: request("/first")) as first:
                await opening.wait()
                await settle()
                first.cancel()
            log("first is gone")
            go_on.set()

    run(backend, main)

    assert [line for line in log if line != "request /first"] == [
        "db opens",
        "first is gone",
        "app startup complete",
        "request /second",
        "app shutdown complete",
        "db closes",
    ]


def test_a_server_that_never_says_goodbye() -> None:
    """A process that ends with its loop stopped but not closed, as daphne leaves it, still runs
    the app's shutdown and closes the resources, once, on that loop."""
    code = """
        import asyncio, lifeguard
        guard = lifeguard.Lifeguard()

        @guard.resource
        async def db():
            print("db opens")
            yield
            await asyncio.sleep(0)
            print("db closes")

        async def app(scope, receive, send):
            if scope["type"] == "lifespan":
                await receive()
                print("app startup")
                await send({"type": "lifespan.startup.complete"})
                await receive()
                print("app shutdown")
                await send({"type": "lifespan.shutdown.complete"})
            else:
                print("request")

        served = guard.wrap(app)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(served({"type": "http", "path": "/"}, None, None))
        print("server leaves")
    """
    assert script(code) == [
        "db opens",
        "app startup",
        "request",
        "server leaves",
        "app shutdown",
        "db closes",
    ]


def test_a_server_that_sends_startup_and_never_shutdown() -> None:
    """The process ends while the lifespan waits for its shutdown message: the app shuts down and
    the resources close, once."""
    code = """
        import asyncio, lifeguard
        guard = lifeguard.Lifeguard()

        @guard.resource
        async def db():
            print("db opens")
            yield
            print("db closes")

        async def app(scope, receive, send):
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            print("app shutdown")
            await send({"type": "lifespan.shutdown.complete"})

        async def main():
            started = asyncio.Event()
            async def receive():
                if started.is_set():
                    await asyncio.Event().wait()
                return {"type": "lifespan.startup"}
            async def send(message):
                print(message["type"])
                started.set()
            task = asyncio.ensure_future(guard.wrap(app)({"type": "lifespan"}, receive, send))
            await started.wait()
            main.task = task

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        print("server leaves")
    """
    assert script(code) == [
        "db opens",
        "lifespan.startup.complete",
        "server leaves",
        "app shutdown",
        "db closes",
    ]


def script(code: str, *arguments: str) -> list[str]:
    """Run *code* in a fresh interpreter; the lines it printed. It must end well and silently,
    but for what asyncio says about the server's own task that was left pending."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if not line.startswith(("Task was", "task:"))]
    assert (done.returncode, said) == (0, [])
    return done.stdout.splitlines()


# -- one worker after another ---------------------------------------------------------------------


def test_test_clients_one_after_another_get_a_worker_each() -> None:
    """Starlette's TestClient starts a loop each time: every lifespan opens and closes anew."""
    log = Log()
    guard = make_guard(log, "db")
    app = guard.wrap(LifespanApp(log))
    for number in range(3):
        with TestClient(app) as client:
            assert client.get(f"/{number}").text == "ok"

    assert log == [
        line
        for number in range(3)
        for line in (
            "db opens",
            "app startup complete",
            f"request /{number}",
            "app shutdown complete",
            "db closes",
        )
    ]


def test_httpx_without_lifespan_and_then_a_test_client() -> None:
    """A client that speaks no lifespan opens a worker of its own loop, which ends with that loop;
    the next client, with lifespan, gets a fresh one. And the other way round."""
    log = Log()
    guard = make_guard(log, "db")
    app = guard.wrap(LifespanApp(log))

    async def by_httpx(path: str) -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get(path)).text == "ok"

    asyncio.run(by_httpx("/httpx"))
    with TestClient(app) as client:
        assert client.get("/client").text == "ok"
    asyncio.run(by_httpx("/again"))

    assert log == [
        line
        for path in ("/httpx", "/client", "/again")
        for line in (
            "db opens",
            "app startup complete",
            f"request {path}",
            "app shutdown complete",
            "db closes",
        )
    ]


def test_a_test_client_without_lifespan() -> None:
    """``TestClient(app)`` without ``with`` runs a loop per request: each one is a worker's life."""
    log = Log()
    guard = make_guard(log, "db")
    client = TestClient(guard.wrap(LifespanApp(log)))
    for number in range(2):
        assert client.get(f"/{number}").text == "ok"

    assert log == [
        line
        for number in range(2)
        for line in (
            "db opens",
            "app startup complete",
            f"request /{number}",
            "app shutdown complete",
            "db closes",
        )
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_wraps_on_one_guard_share_a_worker(backend: str) -> None:
    """Two apps of one guard (a site and its admin on two ports): the resources open with the first
    lifespan and close with the last, whatever the order."""
    log = Log()
    guard = make_guard(log, "db")

    async def main() -> None:
        site, admin = guard.wrap(LifespanApp(Log())), guard.wrap(LifespanApp(Log()))
        outer = LifespanServer(site)
        async with in_task(outer.main):
            await outer.startup()
            log("site is up")
            inner = LifespanServer(admin)
            async with in_task(inner.main):
                await inner.startup()
                log("admin is up")
                outer.shut_down()
                await outer.ended.wait()
                log("site is down")
                log(f"admin answers {(await get(admin)).status}")
                inner.shut_down()
            log("admin is down")

    run(backend, main)

    assert log == [
        "db opens",
        "site is up",
        "admin is up",
        "site is down",
        "admin answers 200",
        "db closes",
        "admin is down",
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrapped_twice_runs_the_lifespan_once(backend: str) -> None:
    """Two wraps of one guard around one app: one lifespan, one worker."""
    log = Log()
    guard = make_guard(log, "db")

    async def main() -> None:
        async with lifespan(guard.wrap(guard.wrap(LifespanApp(log)))) as server:
            log(f"messages {len(server.messages)}")

    run(backend, main)

    assert log == [
        "db opens",
        "app startup complete",
        "messages 1",
        "app shutdown complete",
        "db closes",
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_shutdown_waits_for_running_requests(backend: str) -> None:
    """Requests that still run when the server says shutdown end first, on open resources."""
    log = Log()
    guard = make_guard(log, "db")

    async def main() -> None:
        inside, go_on = anyio.Event(), anyio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            guard.callback(log, "callback")
            inside.set()
            await go_on.wait()
            log("request ends")

        served = guard.wrap(http_only(app))
        server = LifespanServer(served)
        async with in_task(server.main):
            await server.startup()
            async with in_task(lambda: served(scope(), None, None)):
                await inside.wait()
                server.shut_down()
                await settle()
                log("shutdown waits")
                go_on.set()

    run(backend, main)

    assert log == ["db opens", "shutdown waits", "request ends", "callback", "db closes"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_shutdown_gives_up_on_a_request_after_the_grace(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A request that does not end within the grace is named in the log, and resources close."""
    log = Log()
    guard = make_guard(log, "db", grace=0.5)

    async def main() -> None:
        inside = anyio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            inside.set()
            await anyio.sleep_forever()

        served = guard.wrap(http_only(app))

        async def request() -> None:
            await served(scope(path="/stuck"), None, None)

        server = LifespanServer(served)
        async with in_task(server.main):
            await server.startup()
            async with in_task(request) as task:
                await inside.wait()
                log("shutdown")
                server.shut_down()
                await server.ended.wait()
                log("server is done")
                task.cancel()

    run(backend, main)

    assert log == ["db opens", "shutdown", "db closes", "server is done"]
    given_up = [r.getMessage() for r in caplog.records if r.name == "lifeguard.worker"]
    assert len(given_up) == 1 and "GET /stuck" in given_up[0]


# -- @lifeguard.lifespan --------------------------------------------------------------------------


def _starlette(lifespan: Any, log: Log) -> Any:
    async def view(request: Any) -> Any:
        log(f"view sees {request.state.pool}")
        return PlainTextResponse("ok")

    return Starlette(lifespan=lifespan, routes=[Route("/", view)])


def _fastapi(lifespan: Any, log: Log) -> Any:
    from fastapi import FastAPI, Request

    app = FastAPI(lifespan=lifespan)

    async def view(request: Request) -> str:
        log(f"view sees {request.state.pool}")
        return "ok"

    view.__annotations__["request"] = Request
    app.get("/")(view)
    return app


def _litestar(lifespan: Any, log: Log) -> Any:
    import litestar

    @litestar.get("/")
    async def view(state: litestar.datastructures.State) -> str:
        log("view sees the pool")
        return "ok"

    view.fn.__annotations__["state"] = litestar.datastructures.State
    return litestar.Litestar(route_handlers=[view], lifespan=[lifespan])


FRAMEWORKS = {"starlette": _starlette, "fastapi": _fastapi, "litestar": _litestar}


@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "wrapped-too"])
@pytest.mark.parametrize("form", ["bare", "with-resources", "empty-brackets"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_lifespan_decorator(framework: str, form: str, wrapped: bool) -> None:
    """``@lifeguard.lifespan`` is what the framework takes as its lifespan: declared resources open
    before it and close after it, its state is the framework's, and it is entered and left once,
    also where the app is wrapped as well."""
    log = Log()
    guard = make_guard(log, "db")

    class Extra:
        name = "extra"

        def open(self) -> None:
            log("extra opens")

        def close(self) -> None:
            log("extra closes")

    async def manager(app: Any) -> Any:
        log(f"entered with {type(app).__name__}")
        yield {"pool": "the pool"}
        log("left")

    given: Any = manager
    decorate: Any = {
        "bare": guard.lifespan,
        "with-resources": guard.lifespan(resources=[Extra()]),
        "empty-brackets": guard.lifespan(),
    }[form]
    app = FRAMEWORKS[framework](decorate(given), log)
    name = type(app).__name__
    if wrapped:
        app = guard.wrap(app)
    with TestClient(app) as client:
        assert client.get("/").status_code == 200

    extra = form == "with-resources"
    assert log == [
        "db opens",
        *["extra opens"] * extra,
        f"entered with {name}",
        "view sees the pool",
        "left",
        *["extra closes"] * extra,
        "db closes",
    ]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_task_group_inside_a_lifespan(backend: str) -> None:
    """A lifespan may hold an anyio task group open: it is entered and left in one task."""
    log = Log()
    guard = make_guard(log)

    @guard.lifespan
    async def background(app: Any) -> Any:
        async def work() -> None:
            log("work begins")
            try:
                await anyio.sleep_forever()
            finally:
                log("work ends")

        async with anyio.create_task_group() as group:
            group.start_soon(work)
            yield
            group.cancel_scope.cancel()

    async def main() -> None:
        async with lifespan(Starlette(lifespan=background)):
            await settle()
            log("serving")

    run(backend, main)

    assert log == ["work begins", "serving", "work ends"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_lifespan_decorator_when_the_server_cancels(backend: str) -> None:
    """A server that cancels its lifespan task, twice even, gets it left once and completely."""
    log = Log()
    guard = make_guard(log, "db")

    @guard.lifespan
    async def manager(app: Any) -> Any:
        log("entered")
        try:
            yield
        finally:
            await settle()
            log("left")

    async def main() -> None:
        server = LifespanServer(Starlette(lifespan=manager))
        async with in_task(server.main) as task:
            await server.startup()
            task.cancel()
            await anyio.lowlevel.checkpoint()
            task.cancel()

    run(backend, main)

    assert log == ["db opens", "entered", "left", "db closes"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", ["startup", "shutdown"])
def test_lifespan_decorator_that_raises(where: str, backend: str) -> None:
    """What the function raises reaches the server as Starlette says it, and resources close."""
    log = Log()
    guard = make_guard(log, "db")

    @guard.lifespan
    async def manager(app: Any) -> Any:
        if where == "startup":
            raise ValueError("startup went wrong")
        yield
        raise ValueError("shutdown went wrong")

    async def main() -> LifespanServer:
        async with lifespan(Starlette(lifespan=manager)) as server:
            pass
        return server

    server = run(backend, main)

    assert log == ["db opens", "db closes"]
    assert server.messages[-1]["type"] == f"lifespan.{where}.failed"
    assert f"ValueError: {where} went wrong" in server.messages[-1]["message"]
    assert isinstance(server.error, ValueError)


def test_lifespan_decorator_where_shutdown_never_comes() -> None:
    """A server that never sends shutdown: the lifespan is left once, at the end of the process,
    before the resources close."""
    code = """
        import asyncio, lifeguard

        @lifeguard.resource
        async def db():
            print("db opens")
            yield
            print("db closes")

        @lifeguard.lifespan
        async def lifespan(app):
            print("entered")
            yield
            await asyncio.sleep(0)
            print("left")

        async def app(scope, receive, send):  # Starlette's router, without its answer at the end
            async with lifespan(app):
                await receive()
                await send({"type": "lifespan.startup.complete"})
                await receive()

        lifeguard.wrap(app)  # or it would say that requests are no units

        async def main():
            started = asyncio.Event()
            async def receive():
                if started.is_set():
                    await asyncio.Event().wait()
                return {"type": "lifespan.startup"}
            async def send(message):
                print(message["type"])
                started.set()
            main.task = asyncio.ensure_future(app({"type": "lifespan"}, receive, send))
            await started.wait()

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        print("server leaves")
    """
    assert script(code) == [
        "db opens",
        "entered",
        "lifespan.startup.complete",
        "server leaves",
        "left",
        "db closes",
    ]


def _sub_app(log: Log, name: str, **state: Any) -> Any:
    @contextlib.asynccontextmanager
    async def manager(app: Any) -> Any:
        log(f"{name} entered")
        yield state
        log(f"{name} left")

    async def view(request: Any) -> Any:
        known = {key: getattr(request.state, key, None) for key in ("a", "b", "pool")}
        return JSONResponse(known)

    return Starlette(lifespan=manager, routes=[Route("/", view)])


@pytest.mark.parametrize("chosen", ["none", "all", "one"])
def test_lifespans_of_mounted_apps(chosen: str) -> None:
    """Starlette never runs the lifespans of mounted apps (starlette#649). ``mounts=True`` runs all
    of them inside the outer one, ``mounts=[app]`` those; their state is merged, the outer one's
    word counts; each is entered once even if it is mounted twice."""
    log = Log()
    guard = make_guard(log)
    one = _sub_app(log, "one", a=1, pool="inner")
    two = _sub_app(log, "two", b=2)
    deep = Starlette(routes=[Mount("/two", app=two)])
    mounts: Any = {"none": False, "all": True, "one": [one]}[chosen]

    @guard.lifespan(mounts=mounts)
    async def manager(app: Any) -> Any:
        log("outer entered")
        yield {"pool": "outer"}
        log("outer left")

    routes = [Mount("/one", app=one), Mount("/again", app=one), Mount("/deep", app=deep)]
    app = Starlette(lifespan=manager, routes=routes)
    with TestClient(app) as client:
        log("serving")
        seen = [client.get(path).json() for path in ("/one/", "/deep/two/")]

    ran = {"none": [], "all": ["one", "two"], "one": ["one"]}[chosen]
    assert log == [
        "outer entered",
        *[f"{name} entered" for name in ran],
        "serving",
        *[f"{name} left" for name in reversed(ran)],
        "outer left",
    ]
    a, b = (1 if "one" in ran else None), (2 if "two" in ran else None)
    assert seen == [{"a": a, "b": b, "pool": "outer"}] * 2


@pytest.mark.parametrize("what", ["class", "coroutine-function", "generator", "none-called"])
def test_lifespan_decorator_refuses_what_it_cannot_use(what: str) -> None:
    """What is not a function of the app that yields once is refused where it is decorated."""

    async def coroutine(app: Any) -> None: ...

    def generator(app: Any) -> Any:
        yield

    given: Any = {
        "class": Starlette,
        "coroutine-function": coroutine,
        "generator": generator,
        "none-called": "lifespan",
    }[what]
    with pytest.raises(TypeError, match=r"@lifeguard\.lifespan cannot use"):
        make_guard(Log()).lifespan(given)


def test_a_lifespan_without_a_wrapped_app_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Requests are no units then: it is said at start, with what to do."""
    guard = lifeguard.Lifeguard()

    @guard.lifespan
    async def lifespan(app: Any) -> Any:
        yield {}

    async def main() -> None:
        async with lifespan(None):
            pass

    anyio.run(main)
    assert "requests are no units" in caplog.text
    assert "lifeguard.wrap(app)" in caplog.text

    caplog.clear()
    guard.wrap(LifespanApp(Log()))
    anyio.run(main)
    assert caplog.text == ""


def test_two_loops_at_once_share_the_worker_and_both_end() -> None:
    """Two threads, a loop each, in the middle of their first requests: neither waits for ever."""
    guard = lifeguard.Lifeguard(handle_sigterm=False, grace=1)
    both = threading.Barrier(2)
    served: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise RuntimeError
        both.wait(10)
        served.append(scope["path"])

    wrapped = guard.wrap(app)
    threads = [
        threading.Thread(
            target=lambda path=path: asyncio.run(wrapped(scope(path=path), None, None)), daemon=True
        )
        for path in ("/a", "/b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(served) == ["/a", "/b"]
