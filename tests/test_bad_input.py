"""What people get wrong at first: each mistake has an error of its own that says what to do.

And nothing is lost or left open in any of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg_pool import AsyncConnectionPool, ConnectionPool

import lifeguard
from lifeguard import ClosedError, CloseErrors, Lifeguard, LifeguardError, NotOpenError

ROOT = Path(__file__).parent.parent
HERE = re.escape(__file__)

WHAT_TO_PASS = (
    r"pass an ASGI app \(`async def app\(scope, receive, send\)`, FastAPI\(\), Starlette\(\), "
    r"get_asgi_application\(\)\) or a WSGI app \(`def app\(environ, start_response\)`, "
    r"flask_app\.wsgi_app\)"
)


@pytest.fixture
def guard() -> Iterator[Lifeguard]:
    guard = Lifeguard(grace=2, open_timeout=2, handle_sigterm=False)
    yield guard
    guard._worker.end()


# -- wrap -----------------------------------------------------------------------------------------


class WSGIApp:
    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        return []


class ASGIApp:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


def generator() -> Iterator[bytes]:
    yield b""


async def async_generator() -> AsyncIterator[bytes]:
    yield b""


async def two_arguments(environ: Any, start_response: Any) -> list[bytes]:
    return []


def four_arguments(a: Any, b: Any, c: Any, d: Any) -> None: ...


NOT_APPS: dict[str, tuple[Any, str]] = {
    "None": (None, r"got None: "),
    "a string": ("myapp:app", r"got 'myapp:app' of type str, which cannot be called: "),
    "a number": (3, r"got 3 of type int, which cannot be called: "),
    "a module": (sys, r"got <module 'sys'.*> of type module, which cannot be called: "),
    "a class": (ASGIApp, r"got the class ASGIApp instead of an instance of it: "),
    "a WSGI class": (WSGIApp, r"got the class WSGIApp instead of an instance of it: "),
    "a builtin class": (dict, r"got "),
    "a generator": (
        generator(),
        r"got a generator \(was a function called one time too often\?\): ",
    ),
    "an async generator": (
        async_generator(),
        r"got a async_generator \(was a function called one time too often\?\): ",
    ),
    "an async generator function": (
        async_generator,
        r"got <function async_generator.*>, which is an async generator function: ",
    ),
    "an async function of two": (
        two_arguments,
        r"got <function two_arguments.*>, which is async but does not take \(scope, receive, send",
    ),
    "a function of none": (
        lambda: None,
        r"got <function .*>, which takes 0 arguments, so it is neither ASGI nor WSGI: ",
    ),
    "a function of four": (
        four_arguments,
        r"got <function four_arguments.*>, which takes 4 arguments, so it is neither ASGI nor WSGI",
    ),
}


@pytest.mark.parametrize("what", NOT_APPS)
def test_wrap_says_what_it_got_and_what_to_pass(what: str, guard: Lifeguard) -> None:
    """TypeError for what is neither ASGI nor WSGI, at once and not at the first request."""
    app, wanted = NOT_APPS[what]
    with pytest.raises(TypeError, match=rf"^lifeguard\.wrap\(\) {wanted}") as caught:
        guard.wrap(app)
    assert re.search(WHAT_TO_PASS + "$", str(caught.value))


def test_wrap_of_a_coroutine_says_so(guard: Lifeguard) -> None:
    """An async factory that was called and not awaited."""

    async def make_app() -> ASGIApp:
        return ASGIApp()

    coroutine = make_app()
    with pytest.raises(TypeError, match=r"got a coroutine \(was a function called one time too"):
        guard.wrap(coroutine)  # type: ignore[type-var]
    coroutine.close()


@pytest.mark.parametrize(
    ("resources", "wanted"),
    [
        ("postgresql://db", r"resources= takes a list, not str: resources=\[pool\]"),
        (b"pool", r"resources= takes a list, not bytes"),
        (None, r"resources= takes a list, not NoneType"),
        (3, r"resources= takes a list, not int"),
        ([3], r"3 is not a resource: pass an object with open\(\) and close\(\), or a context"),
        ([None], r"None is not a resource"),
        (["postgresql://db"], r"'postgresql://db' is not a resource"),
        ([ConnectionPool], r"<class '.*ConnectionPool'> is not a resource: pass an object"),
    ],
)
def test_wrap_says_what_a_resource_is(resources: Any, wanted: str, guard: Lifeguard) -> None:
    """TypeError where it is passed."""
    with pytest.raises(TypeError, match=wanted):
        guard.wrap(ASGIApp(), resources=resources)


def test_wrap_of_a_single_pool_says_to_pass_a_list(guard: Lifeguard) -> None:
    """`resources=pool` is what people write first."""
    pool: ConnectionPool[Any] = ConnectionPool("", open=False)
    with pytest.raises(TypeError, match=r"resources= takes a list, not ConnectionPool: resources="):
        guard.wrap(ASGIApp(), resources=pool)  # type: ignore[arg-type]


def test_a_password_in_what_was_passed_is_not_shown(guard: Lifeguard) -> None:
    """A DSN instead of a pool: the error shows it without its secret."""
    with pytest.raises(TypeError) as caught:
        guard.wrap(ASGIApp(), resources=["postgresql://app:s3cret@db/app"])
    assert "s3cret" not in str(caught.value)
    with pytest.raises(TypeError) as caught:
        guard.resource("postgresql://app:s3cret@db/app")  # type: ignore[call-overload]
    assert "s3cret" not in str(caught.value)
    with pytest.raises(TypeError) as caught:
        guard.wrap("postgresql://app:s3cret@db/app")  # type: ignore[type-var]
    assert "s3cret" not in str(caught.value)


# -- task, lifespan, executor ---------------------------------------------------------------------


def test_a_generator_cannot_be_a_task(guard: Lifeguard) -> None:
    """Its body runs when somebody asks for the next item: the error says what to do instead."""
    wanted = r"@lifeguard\.task cannot guard the generator .*{}.* Put `with lifeguard\.unit\(\):`"
    with pytest.raises(TypeError, match=wanted.format("generator")):
        guard.task(generator)
    with pytest.raises(TypeError, match=wanted.format("async_generator")):
        guard.task(async_generator)


def test_only_functions_can_be_tasks(guard: Lifeguard) -> None:
    """A class, None, and what hides a function each have their own words."""
    with pytest.raises(TypeError, match=r"takes a function, not the class ASGIApp: decorate the"):
        guard.task(ASGIApp)
    with pytest.raises(TypeError, match=r"@lifeguard\.task takes a function, not None"):
        guard.task(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"put @staticmethod above @lifeguard\.task"):
        guard.task(staticmethod(four_arguments))


@pytest.mark.parametrize("func", [3, ASGIApp, "lifespan"])
def test_only_functions_can_be_lifespans(func: Any, guard: Lifeguard) -> None:
    """The error shows what it got and what to decorate."""
    wanted = (
        r"@lifeguard\.lifespan cannot use .*: decorate `async def lifespan\(app\): \.\.\.` that"
    )
    with pytest.raises(TypeError, match=wanted):
        guard.lifespan(func)


def test_a_lifespan_has_to_yield(guard: Lifeguard) -> None:
    """A coroutine function and a sync generator are near misses with an error of their own."""

    async def lifespan(app: Any) -> None: ...

    def sync_lifespan(app: Any) -> Iterator[None]:
        yield

    for func in (lifespan, sync_lifespan):
        with pytest.raises(TypeError, match=r"it has to be an `async def` that yields once"):
            guard.lifespan(func)  # type: ignore[call-overload]


# -- outside --------------------------------------------------------------------------------------


def test_callback_outside_a_unit(guard: Lifeguard) -> None:
    """NotOpenError says where it was called and where it belongs."""
    wanted = (
        rf"callback\(\) was called outside a unit, at {HERE}:\d+: call it in a request that "
        r"lifeguard\.wrap\(\) guards, in a @lifeguard\.task, or in `with lifeguard\.unit\(\):`"
    )
    with pytest.raises(NotOpenError, match=wanted):
        guard.callback(print)
    with pytest.raises(NotOpenError, match=wanted):
        lifeguard.callback(print)


def test_callback_with_what_cannot_be_called(guard: Lifeguard) -> None:
    """The mistake of calling the function instead of passing it."""
    with guard.unit(), pytest.raises(TypeError, match=r"callback\(\) takes a callable, not None"):
        guard.callback(None)  # type: ignore[arg-type]


def test_get_outside_a_worker(guard: Lifeguard) -> None:
    """NotOpenError names the resource and where it was made, and says what to do."""

    @guard.resource
    def db() -> Iterator[int]:
        yield 1

    wanted = (
        rf"resource 'db' \(made at {HERE}:\d+\) is not open: the worker is not open yet\. Use it "
        r"inside a request or a task, or open the worker around your code: "
        r"`with lifeguard\.worker\(\):` \(`async with` where resources are async\)"
    )
    with pytest.raises(NotOpenError, match=wanted):
        db.get()


def test_a_closed_worker_takes_nothing_any_more(guard: Lifeguard) -> None:
    """ClosedError names it and says what to do; what was brought is not lost: it is refused."""
    ran: list[object] = []
    with guard.worker() as worker:
        pass
    with pytest.raises(ClosedError, match=r"the worker of process \d+ has ended: what outlives it"):
        worker.callback(ran.append, 1)
    with pytest.raises(ClosedError, match=r"the worker of process \d+ has ended"):
        worker.enter(contextlib.ExitStack())
    assert ran == []


# -- resources that do not keep the rules ---------------------------------------------------------


def never() -> Iterator[int]:
    if events is None:
        yield 1
    events.append("ran")


def twice() -> Iterator[int]:
    try:
        yield 1
        yield 2
    finally:
        events.append("finally")


async def anever() -> AsyncIterator[int]:
    if events is None:
        yield 1
    events.append("ran")


async def atwice() -> AsyncIterator[int]:
    try:
        yield 1
        yield 2
    finally:
        events.append("finally")


events: list[str] = []


def enter(guard: Lifeguard) -> None:
    async def main() -> None:
        async with guard.worker():
            events.append("work")

    asyncio.run(main())


@pytest.mark.parametrize("source", [never, anever])
def test_a_resource_that_never_yields(source: Any, guard: Lifeguard) -> None:
    """LifeguardError at the opening; what was open before it is closed."""
    events.clear()

    @guard.resource
    def before() -> Iterator[int]:
        events.append("open before")
        yield 1
        events.append("close before")

    guard.resource(source)
    wanted = r"ended without a yield: `yield` the opened value once"
    with pytest.raises(LifeguardError, match=rf"resource '{source.__name__}' .* {wanted}"):
        enter(guard)
    assert events == ["open before", "ran", "close before"]


@pytest.mark.parametrize("source", [twice, atwice])
def test_a_resource_that_yields_twice(source: Any, guard: Lifeguard) -> None:
    """LifeguardError at the end; its own clean-up ran, and that of the others."""
    events.clear()

    @guard.resource
    def before() -> Iterator[int]:
        events.append("open before")
        yield 1
        events.append("close before")

    guard.resource(source)
    with pytest.raises(CloseErrors) as caught:
        enter(guard)
    (error,) = caught.value.exceptions
    assert isinstance(error, LifeguardError)
    assert re.match(
        rf"resource '{source.__name__}' \(made at {HERE}:\d+\) yielded twice: `yield` once; what "
        "follows the yield closes the resource",
        str(error),
    )
    assert events == ["open before", "work", "finally", "close before"]


# -- a database that does not answer --------------------------------------------------------------


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port of this machine that refuses: bound, and nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def assert_useful(message: str, port: int) -> None:
    """It names the resource, the host and the cause, and not the password."""
    assert "127.0.0.1" in message
    assert str(port) in message
    assert "refused" in message
    assert "orders" in message
    assert "s3cret" not in message


Make = Callable[[str], Any]
POOLS: dict[str, Make] = {
    "sync": lambda dsn: ConnectionPool(dsn, open=False, name="orders"),
    "async": lambda dsn: AsyncConnectionPool(dsn, open=False, name="orders"),
}


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("form", ["uri", "keywords"])
def test_a_lifespan_fails_with_the_reason(
    kind: str, form: str, dead_port: int, guard: Lifeguard
) -> None:
    """The server gets startup.failed with resource, host and cause; the app was never started."""
    seen: list[str] = []
    sent: list[dict[str, Any]] = []
    dsn = {
        "uri": f"postgresql://app:s3cret@127.0.0.1:{dead_port}/app",
        "keywords": f"host=127.0.0.1 port={dead_port} user=app password='s3cret' dbname=app",
    }[form]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def main() -> None:
        wrapped = guard.wrap(app, resources=[POOLS[kind](dsn)])
        await wrapped({"type": "lifespan"}, receive, send)

    asyncio.run(main())
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert_useful(sent[0]["message"], dead_port)
    assert seen == []


def test_a_worker_fails_with_the_reason(dead_port: int, guard: Lifeguard) -> None:
    """The driver's own exception, with notes that name the resource and the host."""
    import psycopg

    dsn = f"postgresql://app:s3cret@127.0.0.1:{dead_port}/app"
    pool: ConnectionPool[Any] = ConnectionPool(dsn, open=False, name="orders")
    with pytest.raises(psycopg.OperationalError) as caught, guard.worker(resources=[pool]):
        pass
    assert_useful("\n".join([str(caught.value), *caught.value.__notes__]), dead_port)
    assert pool.closed


def test_a_server_does_not_start_without_its_database(dead_port: int, tmp_path: Path) -> None:
    """A real uvicorn: it stops with an error, and its log says resource, host and cause."""
    (tmp_path / "program.py").write_text(
        textwrap.dedent(
            f"""
            import lifeguard
            from psycopg_pool import AsyncConnectionPool

            async def app(scope, receive, send):
                raise AssertionError("not reached")

            dsn = "postgresql://app:s3cret@127.0.0.1:{dead_port}/app"
            pool = AsyncConnectionPool(dsn, open=False, name="orders")
            app = lifeguard.wrap(app, resources=[pool])
            """
        )
    )
    command = [sys.executable, "-m", "uvicorn", "--port", "0", "--app-dir", str(tmp_path)]
    result = subprocess.run(
        [*command, "program:app"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert result.returncode == 3, result.stderr  # uvicorn's status for a failed start-up
    assert_useful(result.stderr, dead_port)
    assert "Application startup failed" in result.stderr


def test_a_wsgi_app_answers_500_and_logs_the_reason(
    dead_port: int, guard: Lifeguard, caplog: pytest.LogCaptureFixture
) -> None:
    """WSGI has no start-up: each request is answered with 500 until the database is there."""
    seen: list[Any] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        raise AssertionError("not reached")

    dsn = f"postgresql://app:s3cret@127.0.0.1:{dead_port}/app"
    wrapped = guard.wrap(app, resources=[ConnectionPool(dsn, open=False, name="orders")])
    for _ in range(2):
        body = b"".join(wrapped({"PATH_INFO": "/"}, lambda *args: seen.append(args[0])))
        assert b"s3cret" not in body
    assert [status[:3] for status in seen] == ["500", "500"]
    assert_useful(caplog.records[0].getMessage(), dead_port)
    assert len(caplog.records) == 2
