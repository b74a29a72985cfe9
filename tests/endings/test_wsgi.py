"""Every way a WSGI unit can end, on every kind of server.

Servers differ in who asks for the chunks, who calls ``close()``, on which object, in which thread,
and whether at all. Here each kind is a small server with real threads: the app has a thread of its
own, and so has "elsewhere".
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest

import lifeguard
from tests.endings.server import Log, Reports, in_unit

BIG = 256 * 1024 + 1


def environ(method: str = "GET", **more: Any) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": "/orders",
        "QUERY_STRING": "",
        "SERVER_NAME": "test",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
    } | more


class Threads:
    """The thread that calls the app, and another one. The test hands work to them in turn."""

    def __init__(self) -> None:
        self.app = ThreadPoolExecutor(1, thread_name_prefix="app")
        self.elsewhere = ThreadPoolExecutor(1, thread_name_prefix="elsewhere")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.app.shutdown()
        self.elsewhere.shutdown()


def here() -> str:
    """The thread this runs in: ``app`` or ``elsewhere``."""
    import threading

    return threading.current_thread().name.partition("_")[0]


class Server:
    """One kind of server. ``serve`` gives what the client would see, and keeps errors as text."""

    iterates = "app"
    closes = "app"
    times = 1
    on_iterator = False

    def __init__(self, threads: Threads, log: Log, guard: lifeguard.Lifeguard) -> None:
        self.threads = threads
        self.log = log
        self.guard = guard

    def serve(self, app: Any, case: Case) -> list[Any]:
        seen: list[Any] = []
        env = environ(case.method, **case.environ())

        def write(data: bytes) -> None:
            seen.append(data)

        def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
            seen.append((status, list(headers), exc_info and exc_info[0].__name__))
            return write

        def called() -> Any:
            return app(env, start_response)

        try:
            held = [self.threads.app.submit(called).result()]
        except Exception as exc:
            seen.append(f"app raised {exc!r}")
            return seen
        worker = getattr(self.threads, self.iterates)
        try:
            if case.skips_body:
                case.before_the_body()
            else:
                self.iterate(worker, held[0], case, seen)
        except Exception as exc:
            seen.append(f"iteration raised {type(exc).__name__}: {exc}")
        finally:
            self.end(held)
        self.threads.app.submit(lambda: self.log(f"next request {in_unit(self.guard)}")).result()
        return seen

    def iterate(self, worker: Any, body: Any, case: Case, seen: list[Any]) -> None:
        iterator = worker.submit(iter, body).result()
        count = 0
        sentinel = object()
        while case.take is None or count < case.take:
            chunk = worker.submit(next, iterator, sentinel).result()
            if chunk is sentinel:
                break
            if not seen:
                raise AssertionError("no start_response")
            if not isinstance(chunk, bytes):
                raise TypeError("bytes are needed")
            seen.append(chunk)
            count += 1
        if self.on_iterator and hasattr(iterator, "close"):
            worker.submit(iterator.close).result()

    def end(self, held: list[Any]) -> None:
        """Close, as often and where this server does, then drop the object."""
        if not self.on_iterator and hasattr(held[0], "close"):
            for _ in range(self.times):
                getattr(self.threads, self.closes).submit(held[0].close).result()
        getattr(self.threads, self.closes).submit(held.clear).result()


class ClosesInTheAppsThread(Server):
    """gunicorn, waitress, uWSGI, granian from 1.5 on."""


class ClosesElsewhere(Server):
    closes = "elsewhere"


class IteratesAndClosesElsewhere(Server):
    """granian 1.4.4."""

    iterates = closes = "elsewhere"


class ClosesTheIterator(Server):
    """granian before 1.4.4: the iterable is never closed, only dropped."""

    iterates = closes = "elsewhere"
    on_iterator = True


class ClosesTwice(Server):
    times = 2


class NeverCloses(Server):
    times = 0


SERVERS = [
    ClosesInTheAppsThread,
    ClosesElsewhere,
    IteratesAndClosesElsewhere,
    ClosesTheIterator,
    ClosesTwice,
    NeverCloses,
]


class Case:
    """One of the twenty situations. *form* is what kind of body the app returns."""

    def __init__(
        self,
        name: str,
        *,
        method: str = "GET",
        status: str = "200 OK",
        chunks: tuple[Any, ...] = (b"one", b"two", b"three"),
        length: bool = False,
        take: int | None = None,
        skips_body: bool = False,
        starts: bool = True,
        file: str = "",
        reads: bool = False,
    ) -> None:
        self.name = name
        self.method = method
        self.status = status
        self.chunks = chunks
        self.length = length
        self.take = take
        self.skips_body = skips_body
        self.starts = starts
        self.file = file
        self.reads = reads

    def environ(self) -> dict[str, Any]:
        if self.reads:
            return {"wsgi.input": Disconnected(), "CONTENT_LENGTH": "10"}
        if self.method == "POST":
            return {"wsgi.input": io.BytesIO(b"0123456789"), "CONTENT_LENGTH": "10"}
        return {}

    def before_the_body(self) -> None:
        if self.name == "bad header":
            raise ValueError("header is not a string")

    def headers(self) -> list[tuple[str, str]]:
        headers = [("Content-Type", "text/plain")]
        if self.length:
            size = sum(len(chunk) for chunk in self.chunks if isinstance(chunk, bytes))
            headers.append(("Content-Length", str(size)))
        return headers


class Disconnected(io.BytesIO):
    """The request body of a client that has left."""

    def read(self, size: int | None = -1) -> bytes:
        raise ConnectionResetError("client left")


CASES = [
    Case("normal"),
    Case("normal with length", length=True),
    Case("single chunk", chunks=(b"all",)),
    Case("HEAD", method="HEAD", skips_body=True),
    Case("HEAD with length", method="HEAD", skips_body=True, length=True),
    Case("204", status="204 No Content", chunks=(), skips_body=True),
    Case("304", status="304 Not Modified", chunks=(), skips_body=True),
    Case("exception at chunk 0", chunks=(ValueError("at 0"), b"never")),
    Case("exception at chunk 1", chunks=(b"one", ValueError("at 1"))),
    Case("chunk that is not bytes", chunks=(b"one", "text")),
    Case("bad header", skips_body=True),
    Case("no start_response", starts=False),
    Case("file wrapper, python object", file="object"),
    Case("file wrapper, real file", file="real"),
    Case("file wrapper, HEAD", file="real", method="HEAD", skips_body=True),
    Case("POST with unread body", method="POST"),
    Case("disconnect in a slow stream", take=1),
    Case("disconnect in a big stream", chunks=(b"x" * BIG,) * 3, length=True, take=1),
    Case("disconnect before the response", take=0),
    Case("disconnect inside the request body", reads=True),
]


class Body:
    """An iterable that says when it is closed. ``django`` ones have their chunks in a list."""

    def __init__(self, log: Log, form: str, chunks: Iterator[Any]) -> None:
        self.log = log
        self.chunks = iter(list(chunks)) if form == "django" else chunks

    def __iter__(self) -> Iterator[Any]:
        return self.chunks

    def close(self) -> None:
        self.log(f"close in {here()}")


class LoggedFile(io.FileIO):
    """A real file that says when it is closed."""

    log: Log

    def close(self) -> None:
        if not self.closed:
            self.log(f"close in {here()}")
        super().close()


class LoggedObject(io.BytesIO):
    """A file that is none for the operating system."""

    log: Log

    def close(self) -> None:
        self.log(f"close in {here()}")
        super().close()


def make_app(case: Case, form: str, guard: Any, log: Log, path: Path) -> Any:
    """An app for *case*; with a *guard* it registers a callback that logs where it runs."""

    def chunks() -> Iterator[Any]:
        for chunk in case.chunks:
            if isinstance(chunk, Exception):
                raise type(chunk)(*chunk.args)  # a new one: it keeps the frames it came through
            yield chunk

    def app(env: Any, start_response: Any) -> Any:
        if guard is not None:
            guard.callback(lambda: log(f"callback in {here()}"))
        if case.reads:
            env["wsgi.input"].read()
        if case.starts:
            start_response(case.status, case.headers())
        if case.file:
            kind: Any = LoggedFile if case.file == "real" else LoggedObject
            file = kind(str(path)) if case.file == "real" else kind(b"file content")
            file.log = log
            return env["wsgi.file_wrapper"](file)
        return Body(log, form, chunks())

    return app


def raises_in_chunks(case: Case) -> bool:
    return any(isinstance(chunk, Exception) for chunk in case.chunks)


def is_complete(case: Case, form: str) -> bool:
    """Whether all of the body is there when the app returns, and no code of the app runs on."""
    if case.file:
        return case.file == "real"
    return form == "django" or (case.length and case.name != "disconnect in a big stream")


#: Files and failing chunks have no list underneath.
FORMS = [(case, "generator") for case in CASES]
FORMS += [(case, "django") for case in CASES if not case.file and not raises_in_chunks(case)]


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize(
    ("case", "form"), [pytest.param(*key, id=f"{key[0].name}-{key[1]}") for key in FORMS]
)
def test_every_ending(case: Case, form: str, kind: type[Server], tmp_path: Path) -> None:
    """In each of the twenty cases, on each kind of server: the client sees what it would have
    seen, the callback runs once, in the app's thread if the body is complete by then or the server
    asks for it there, the app's own close() runs once and before the callback, and the server's
    thread is in no unit afterwards."""
    path = tmp_path / "file"
    path.write_bytes(b"file content")
    logs, seen = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of servers that close nothing
        with Threads() as threads:
            for guarded in (False, True):
                log = Log()
                guard = lifeguard.Lifeguard(handle_sigterm=False, observers=[Reports(log)])
                app = make_app(case, form, guard if guarded else None, log, path)
                with guard.worker():
                    served = guard.wrap(app) if guarded else app
                    seen.append(kind(threads, log, guard).serve(served, case))
                logs.append(log)
    bare, log = logs

    assert seen[0] == seen[1]
    assert bare.count("next request in no unit") == log.count("next request in no unit")
    done = [line for line in log if not line.startswith("next")]
    if case.reads:
        assert done == ["callback in app"]
        return
    complete = is_complete(case, form)
    # Generators that are read to their end end in the thread that reads, else in the one that
    # closes or drops them.
    to_the_end = not case.skips_body and case.take is None and "one" in repr(case.chunks)
    to_the_end = to_the_end and not raises_in_chunks(case) and "text" not in case.chunks
    to_the_end = (to_the_end or case.name == "single chunk") and case.starts
    where = "app" if complete else (kind.iterates if to_the_end else kind.closes)
    if case.file == "real":
        # The server's own object for a real file stays the server's to close, or to forget.
        assert done[0] == "callback in app"
        assert done[1:] == [line for line in bare if line.startswith("close")]
    else:
        assert done == [f"close in {where}", f"callback in {where}"]


# -- identity, laziness, laws of WSGI -------------------------------------------------------------


def wrap(app: Any, log: Log | None = None) -> tuple[Any, lifeguard.Lifeguard]:
    observers = [Reports(log)] if log is not None else []
    guard = lifeguard.Lifeguard(handle_sigterm=False, observers=observers)
    return guard.wrap(app), guard


@pytest.fixture(autouse=True)
def in_a_context_of_its_own() -> Iterator[None]:
    """The worker that a test's first request opens is closed with the test."""
    made: list[lifeguard.Lifeguard] = []
    original = lifeguard.Lifeguard.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lifeguard.Lifeguard, "__init__", init)
        yield
    for guard in made:
        guard._worker.end()


def start(status: str, headers: Any, exc_info: Any = None) -> Any:
    return lambda data: None


@pytest.mark.parametrize(
    "make",
    [
        lambda path: [b"a", b"b"],
        lambda path: [],
        lambda path: (b"a", b"b"),
        lambda path: FileWrapper(path.open("rb")),
        lambda path: path.open("rb"),  # what uWSGI's wsgi.file_wrapper function returns
    ],
    ids=["list", "empty-list", "tuple", "file-wrapper-class", "file"],
)
def test_the_very_object_is_passed_on(make: Callable[[Path], Any], tmp_path: Path) -> None:
    """Bodies in which none of the app's code runs any more are returned as they are: servers send
    lists in one piece and files by the operating system."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    body = make(path)
    log = Log()

    def app(env: Any, start_response: Any) -> Any:
        guard.callback(log, "callback")
        start_response("200 OK", [])
        return body

    served, guard = wrap(app)
    given = served(environ(), start)

    assert given is body
    assert log == ["callback"]
    if hasattr(body, "close"):
        body.close()


def test_infinite_stream_is_not_buffered() -> None:
    """The first chunk of an endless body comes before the second is made."""
    log = Log()

    def endless() -> Iterator[bytes]:
        number = 0
        try:
            while True:
                log(f"made {number}")
                yield b"%d" % number
                number += 1
        finally:
            log("generator closes")

    def app(env: Any, start_response: Any) -> Any:
        guard.callback(log, "callback")
        start_response("200 OK", [])
        return endless()

    served, guard = wrap(app)
    body = served(environ(), start)
    log("app returned")
    chunks = iter(body)
    log(f"got {next(chunks)!r}", f"got {next(chunks)!r}")
    body.close()

    assert log == [
        "app returned",
        "made 0",
        "made 1",
        "got b'0'",
        "got b'1'",
        "generator closes",
        "callback",
    ]


@pytest.mark.parametrize(
    ("size", "read"), [(0, True), (1, True), (BIG - 1, True), (BIG, False), (BIG * 4, False)]
)
def test_short_bodies_of_known_length_are_read_at_once(size: int, read: bool) -> None:
    """Up to 256 KiB that the app promised are read before the app's call returns; more streams."""
    log = Log()

    def app(env: Any, start_response: Any) -> Any:
        guard.callback(log, "callback")
        start_response("200 OK", [("Content-Length", str(size))])
        for _ in range(2):
            yield b"x" * (size // 2)
        yield b"x" * (size % 2)
        log("end of body")

    def starts_first(env: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", str(size))])
        return app(env, start)

    served, guard = wrap(starts_first)
    body = served(environ(), start)
    log("app returned")
    assert sum(map(len, body)) == size
    if hasattr(body, "close"):
        body.close()

    ended = ["end of body", "callback"]
    assert log == ([*ended, "app returned"] if read else ["app returned", *ended])
    assert isinstance(body, list) is read


@pytest.mark.parametrize("promised", ["3", "9", "x", "-1", "", "٣"])
@pytest.mark.parametrize("chunk", [b"sixsix", "text"], ids=["bytes", "text"])
def test_broken_promises_about_the_length(promised: str, chunk: Any) -> None:
    """A body longer or shorter than it said, or of a length that is none, comes out chunk by chunk
    as the app made it: what a server does about it stays the server's business."""
    log = Log()

    def body() -> Iterator[Any]:
        yield chunk
        yield chunk
        log("end of body")

    def app(env: Any, start_response: Any) -> Any:
        guard.callback(log, "callback")
        start_response("200 OK", [("Content-Length", promised)])
        return body()

    served, guard = wrap(app)
    given = served(environ(), start)
    chunks = list(given)
    if hasattr(given, "close"):
        given.close()

    assert chunks == [chunk, chunk]
    assert log == ["end of body", "callback"]


def test_an_endless_body_that_promised_little_is_not_read_for_ever() -> None:
    """A body that never ends although it promised 3 bytes still streams."""

    def app(env: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "3")])

        def endless() -> Iterator[bytes]:
            while True:
                yield b"ab"

        return endless()

    served, _ = wrap(app)
    body = served(environ(), start)
    chunks = iter(body)
    assert [next(chunks) for _ in range(5)] == [b"ab"] * 5
    body.close()


def test_no_python_frame_of_lifeguard_per_chunk() -> None:
    """Ten thousand chunks cost not one Python call in lifeguard more than ten."""

    def calls(count: int) -> int:
        def app(env: Any, start_response: Any) -> Any:
            start_response("200 OK", [])
            return (b"x" for _ in range(count))

        served, _ = wrap(app)
        seen = 0

        def profile(frame: Any, event: str, arg: Any) -> None:
            nonlocal seen
            if event == "call" and "/lifeguard/" in frame.f_code.co_filename:
                seen += 1

        served(environ(), start).close()  # opens the worker
        sys.setprofile(profile)
        try:
            body = served(environ(), start)
            for _ in body:
                pass
            body.close()
        finally:
            sys.setprofile(None)
        return seen

    assert calls(10_000) == calls(10) > 0


@pytest.mark.parametrize("streams", [False, True], ids=["list", "generator"])
@pytest.mark.parametrize("order", ["guard-outside", "guard-inside"])
def test_the_laws_of_wsgi(order: str, streams: bool) -> None:
    """wsgiref's validator, around the guard and inside of it, has nothing to say."""

    def app(env: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return iter([b"a", b"b"]) if streams else [b"a", b"b"]

    guard = lifeguard.Lifeguard(handle_sigterm=False)
    served: Any = guard.wrap(app)
    served = validator(served) if order == "guard-inside" else guard.wrap(validator(app))
    env = environ()
    env["QUERY_STRING"] = "a=b"
    body = served(env, start)
    assert list(body) == [b"a", b"b"]
    body.close()


def test_start_response_of_a_generator_app() -> None:
    """An app that is a generator calls start_response with its first chunk: so the server sees it
    then, and the response streams."""
    log = Log()

    def app(env: Any, start_response: Any) -> Any:
        log("app runs")
        guard.callback(log, "callback")
        start_response("200 OK", [])
        yield b"a"

    def note(status: str, headers: Any, exc_info: Any = None) -> Any:
        log("start_response")
        return lambda data: None

    served, guard = wrap(app)
    body = served(environ(), note)
    log("app returned")
    assert list(body) == [b"a"]
    body.close()

    assert log == ["app returned", "app runs", "start_response", "callback"]


def test_exc_info_and_write_reach_the_server() -> None:
    """start_response's third argument and its result are the server's and the app's business."""
    given: list[Any] = []

    def write(data: bytes) -> None:
        given.append(data)

    def note(*args: Any) -> Any:
        given.append(args)
        return write

    def app(env: Any, start_response: Any) -> Any:
        start_response("200 OK", [("X", "1")])(b"written")
        try:
            raise ValueError
        except ValueError:
            start_response("500 No", [], sys.exc_info())
        return []

    served, _ = wrap(app)
    assert served(environ(), note) == []

    assert given[:2] == [("200 OK", [("X", "1")]), b"written"]
    assert given[2][:2] == ("500 No", []) and given[2][2][0] is ValueError


def test_app_that_raises() -> None:
    """The app's exception comes out as the same object, also when the callback raises too."""
    log = Log()
    error = ValueError("no")

    def app(env: Any, start_response: Any) -> Any:
        def bad() -> None:
            log("callback")
            raise KeyError

        guard.callback(bad)
        raise error

    served, guard = wrap(app, log)
    with pytest.raises(ValueError) as caught:
        served(environ(), start)

    assert caught.value is error and error.__context__ is None
    assert log == ["callback", "reported KeyError of Request"]


def test_close_of_the_app_that_raises() -> None:
    """What the app's own close() raises reaches the server from close(), where it looks for it, and
    the unit has ended."""
    log = Log()

    class Stream:
        def __iter__(self) -> Iterator[bytes]:
            yield b"a"

        def close(self) -> None:
            log("close")
            raise OSError("cannot close")

    def app(env: Any, start_response: Any) -> Any:
        guard.callback(log, "callback")
        start_response("200 OK", [])
        return Stream()

    served, guard = wrap(app)
    body = served(environ(), start)
    assert list(body) == [b"a"]
    with pytest.raises(OSError, match="cannot close"):
        body.close()
    body.close()

    assert log == ["close", "callback"]


def test_the_unit_is_current_while_the_body_is_made() -> None:
    """Code of the app that runs chunk by chunk is in the unit: what it registers then runs, too."""
    log = Log()

    def app(env: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        guard.callback(log, "registered first")
        yield b"a"
        guard.callback(log, "registered while streaming")
        yield b"b"

    served, guard = wrap(app)
    body = served(environ(), start)
    assert list(body) == [b"a", b"b"]
    log(in_unit(guard))
    body.close()

    assert log == ["registered while streaming", "registered first", "in no unit"]


def test_a_dropped_response_is_said() -> None:
    """A server that drops a streamed response without close() gets an UnclosedWarning, and the
    unit ends all the same."""
    log = Log()

    def app(env: Any, start_response: Any) -> Any:
        guard.callback(log, "callback")
        start_response("200 OK", [])
        yield b"a"
        yield b"b"

    served, guard = wrap(app)
    body = served(environ(), start)
    assert next(iter(body)) == b"a"
    with pytest.warns(lifeguard.UnclosedWarning, match="GET /orders"):
        del body

    assert log == ["callback"]


def test_wrapped_twice_is_one_unit() -> None:
    """Two wraps of one guard make one unit; two guards make one each, and the inner ends first."""
    log = Log()
    first, second = (lifeguard.Lifeguard(handle_sigterm=False) for _ in range(2))

    def app(env: Any, start_response: Any) -> Any:
        first.callback(log, "first")
        second.callback(log, "second")
        start_response("200 OK", [])
        log(f"units {len(first._worker.running())} {len(second._worker.running())}")
        return [b"a"]

    def between(env: Any, start_response: Any) -> Any:
        result = first.wrap(second.wrap(app))(env, start_response)
        log("between")
        return result

    assert first.wrap(between)(environ(), start) == [b"a"]
    assert log == ["units 1 1", "second", "between", "first"]


def test_one_environ_for_two_calls() -> None:
    """An environ that is used again gives a unit each time."""
    units: list[Any] = []

    def app(env: Any, start_response: Any) -> Any:
        units.append(guard.current.get())
        start_response("200 OK", [])
        return []

    served, guard = wrap(app)
    env = environ()
    served(env, start)
    served(env, start)
    assert units[0] is not units[1]


def test_flask() -> None:
    """A Flask app under the guard: teardown and call_on_close run, then the unit's callbacks."""
    import flask

    log = Log()
    guard = lifeguard.Lifeguard(handle_sigterm=False)
    app = flask.Flask("shop")

    @app.teardown_request
    def teardown(exc: BaseException | None) -> None:
        log("teardown")

    @app.get("/whole")
    def whole() -> str:
        guard.callback(log, "callback")
        return "ok"

    @app.get("/stream")
    def stream() -> Any:
        guard.callback(log, "callback")
        response = flask.Response(iter(["a", "b"]))
        response.call_on_close(lambda: log("call_on_close"))
        return response

    app.wsgi_app = guard.wrap(app.wsgi_app)  # type: ignore[method-assign]
    client = app.test_client()
    assert client.get("/whole").text == "ok"
    assert client.get("/stream").text == "ab"

    assert log == ["teardown", "callback", "teardown", "call_on_close", "callback"]


def test_failure_to_open_is_answered_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """Where a resource does not open, the request is answered with 500 and the log says why, the
    next request tries again; the client never sees the reason."""
    broken = True
    guard = lifeguard.Lifeguard(handle_sigterm=False)
    log = Log()

    @guard.resource
    def db() -> Iterator[None]:
        if broken:
            raise ConnectionRefusedError("db.internal is down")
        yield

    def note(status: str, headers: Any, exc_info: Any = None) -> Any:
        log(status)

    def app(env: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return [b"ok"]

    served = guard.wrap(app)
    body = b"".join(served(environ(), note))
    broken = False
    assert served(environ(), note) == [b"ok"]

    assert log == ["500 Internal Server Error", "200 OK"]
    assert b"could not be opened" in body and b"internal" not in body
    assert "db.internal is down" in caplog.text


def test_first_requests_in_threads_open_once() -> None:
    """Sixteen first requests at once: the resource opens once, and all are answered."""
    import threading

    guard = lifeguard.Lifeguard(handle_sigterm=False)
    log = Log()
    start_together = threading.Barrier(16)

    @guard.resource
    def db() -> Iterator[str]:
        log("opens")
        yield "db"

    def app(env: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return [db.get().encode()]

    served = guard.wrap(app)

    def request() -> Any:
        start_together.wait()
        return served(environ(), start)

    with ThreadPoolExecutor(16) as executor:
        answers = [executor.submit(request) for _ in range(16)]
        assert [answer.result() for answer in answers] == [[b"db"]] * 16

    assert log == ["opens"]
