"""WSGI: one unit per request, ended in the thread that served it.

WSGI puts the end of a request into ``close()`` of the returned iterable, and leaves calling it to
the server. Servers have forgotten it, called it on another object, or in another thread (granian
before 1.5, granian#306). So whatever is complete when the app returns is ended there and then:
lists and tuples, bodies that are lists underneath (Django), and short ones whose length the app
declared (Flask). Only what really streams keeps its unit until it is exhausted, closed or dropped,
whichever comes first.
"""

from __future__ import annotations

from itertools import chain

from ._core.clock import now
from ._core.errors import ClosedError, UnclosedWarning
from ._core.lifetime import CLOSED, OPEN
from ._core.observer import logger
from ._core.unit import Unit
from ._core.worker import Worker, failed_to_open

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from ._core.resource import Resource
    from ._wrap import Lifeguard

    Environ = dict[str, Any]
    StartResponse = Callable[..., Any]
    WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]

__all__ = ["Middleware"]

#: Bodies with a declared length up to this are read in the app's thread. Longer ones stream.
WHOLE = 256 * 1024


class Request(Unit):
    """The unit of one WSGI request."""

    __slots__ = ("headers", "respond")

    awaits = False

    headers: Any
    respond: StartResponse

    def start(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        """The ``start_response`` that the app sees: the server's, and the headers are noted."""
        self.headers = headers
        if exc_info is None:
            return self.respond(status, headers)
        return self.respond(status, headers, exc_info)

    @property
    def name(self) -> str:
        environ = self.source
        if environ is None:
            return "an ended request"
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        return f"{environ.get('REQUEST_METHOD', 'GET')} {path}"


class Middleware:
    """``lifeguard.wrap`` where a framework wants a middleware class. See :func:`lifeguard.wrap`."""

    __slots__ = ("_app", "app")

    def __init__(
        self, app: WSGIApp, *, guard: Lifeguard | None = None, resources: Iterable[object] = ()
    ) -> None:
        from . import _default

        guard = guard or _default
        self.app = app
        self._app = wrap_wsgi(app, guard, [guard.adopt(obj) for obj in resources])

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        return self._app(environ, start_response)


def wrap_wsgi(app: WSGIApp, guard: Lifeguard, resources: list[Resource[Any]]) -> WSGIApp:
    """Guard a WSGI app. The closure is the hot path: see bench/ before you touch it."""
    guard.has_front_door = True
    key = guard.key
    current = guard.current
    get_current, set_current = current.get, current.set
    worker = Worker(guard, awaits=False)  # not open, so that the first request opens one
    run = app  # with the layers of libraries
    lists = 0  # how many bodies in a row were lists, whose headers need not be looked at

    def lifeguard_wsgi(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        nonlocal run, worker, lists
        if not worker.serving or key in environ:
            served = environ.get(key)
            if served is not None and served.state is OPEN:  # wrapped twice: the outer one has it
                return app(environ, start_response)
            if not worker.serving:
                try:
                    worker = guard.acquire(resources, hold=False)
                    run = guard.layered("wsgi", app)
                except Exception as exc:
                    return _refuse(environ, start_response, exc)
        unit = Request()
        unit.state = OPEN
        unit.source = environ
        unit.worker = worker
        unit.started = now()
        environ[key] = unit
        outer = get_current()
        set_current(unit)
        try:
            if lists < _SURE:
                unit.respond = start_response
                unit.headers = None
                body = run(environ, unit.start)
                headers = unit.headers
                lists += 1
            else:
                body = run(environ, start_response)
                headers = None
            if type(body) is not list:
                lists = _NEVER_SURE
                # The unit stays current while the body runs: it may be the app's code.
                body = _whole_or_streaming(body, unit, environ, headers)
                if isinstance(body, _Body):
                    body.outer = outer
                    return body
        except BaseException as exc:
            set_current(outer)
            unit.state = CLOSED
            if unit:
                unit.conclude(exc)
            unit.source = None
            raise
        # Resetting would cost as much as all the rest: a closed unit says itself that it is.
        if outer is not None and outer.state is OPEN:
            set_current(outer)
        unit.state = CLOSED
        if unit:
            unit.conclude(None)
        unit.source = None  # the environ has the unit, so the unit lets go of the environ
        return body

    lifeguard_wsgi.lifeguard_guard = guard  # type: ignore[attr-defined]
    lifeguard_wsgi.__qualname__ = "lifeguard.wrap(<WSGI app>)"  # where an ASGI server calls it
    return lifeguard_wsgi


#: An app whose first so many bodies were lists goes on like that: noting headers costs a fifth. If
#: it does not, headers are noted from then on.
_SURE = 100
_NEVER_SURE = -(1 << 62)


def _whole_or_streaming(body: Any, unit: Request, environ: Environ, headers: Any) -> Any:
    """*body* as a list, if it is complete already; as it is, if the server knows it better than
    we do; else guarded."""
    kind = type(body)
    if kind is tuple:
        return body
    if kind is not _GENERATOR:
        wrapper = environ.get("wsgi.file_wrapper")
        if wrapper is not None and (isinstance(wrapper, type) and isinstance(body, wrapper)):
            file = getattr(body, "filelike", None) or getattr(body, "file", None)
            if _is_file(file):
                return body  # the server sends the file itself, and no code of the app runs
        elif _is_file(body):
            return body
    iterator = iter(body)
    if type(iterator) in _LISTS:  # Django's HttpResponse, list subclasses: all of it is there
        return _closed(body, list(iterator))
    if headers:
        length = _declared_length(headers)
        if length is not None and length <= WHOLE:
            chunks, complete = _read(body, iterator, length)
            if complete:
                return _closed(body, chunks)
            iterator = chain(chunks, iterator)
    guarded = _SizedBody() if kind is not _GENERATOR and hasattr(body, "__len__") else _Body()
    guarded.unit = unit
    guarded.body = body
    guarded.chunks = iterator
    guarded.error = None
    return guarded


def _closed(body: Any, chunks: list[Any]) -> Any:
    """*chunks* are all of *body*, which can be closed. What that raises comes when the server
    closes, as it would have: the client has its response by then."""
    try:
        _close(body)
    except Exception as exc:
        return _Failed(chunks, exc)
    return chunks


def _declared_length(headers: Any) -> int | None:
    for name, value in headers:
        if name in _CONTENT_LENGTH:
            return int(value) if isinstance(value, str) and value.isdigit() else None
    return None


_CONTENT_LENGTH = frozenset(("Content-Length", "content-length", "CONTENT-LENGTH"))


def _read(body: Any, iterator: Iterator[Any], length: int) -> tuple[list[Any], bool]:
    """Read a body that promised *length* bytes. False with what was read, if it broke its word:
    the server then meets the rest, and handles it in its own way."""
    chunks: list[Any] = []
    left = length
    try:
        for chunk in iterator:
            chunks.append(chunk)
            if not isinstance(chunk, bytes):
                return chunks, False
            left -= len(chunk)
            if left < 0 or (not chunk and len(chunks) > 1000):
                return chunks, False
    except BaseException:
        _close(body)
        raise
    return chunks, True


_LISTS: tuple[type, ...] = (type(iter([])), type(iter(())))
_GENERATOR = type(_ for _ in ())


def _is_file(obj: object) -> bool:
    fileno = getattr(obj, "fileno", None)
    if fileno is None:
        return False
    try:
        fileno()
    except (OSError, ValueError, AttributeError):  # io.UnsupportedOperation is an OSError
        return False
    return True


def _close(body: object) -> None:
    close = getattr(body, "close", None)
    if close is not None:
        close()


class _Failed:
    """A complete body whose own ``close()`` has failed already."""

    def __init__(self, chunks: list[Any], error: Exception) -> None:
        self.chunks = chunks
        self.error: Exception | None = error

    def __iter__(self) -> Iterator[Any]:
        return iter(self.chunks)

    def __len__(self) -> int:
        return len(self.chunks)

    def close(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error


class _Body:
    """A body that streams. No Python frame of ours runs per chunk.

    ``__iter__`` hands out a C iterator over the app's chunks, and behind the last of them over
    this object once more, which then ends the unit. (It also keeps this object alive for servers
    that hold on to the iterator only.)
    """

    __slots__ = ("body", "chunks", "error", "outer", "unit")

    unit: Request
    body: Any
    chunks: Iterator[bytes] | None  #: None once they were handed out
    error: Exception | None  #: of the app's own close(), kept for the server's call of close()
    outer: Unit | None

    def __iter__(self) -> Iterator[bytes]:
        chunks = self.chunks
        if chunks is None:
            # All is handed out. What the app's close() gives back belongs to the unit, too.
            try:
                self.close()
            except Exception as exc:
                self.error = exc
            return iter(())
        self.chunks = None
        return chain(chunks, self)

    def close(self) -> None:
        """End the response, as the server is to do (PEP 3333). Once is enough."""
        error, self.error = self.error, None
        if error is not None:
            raise error
        body, self.body = self.body, ()
        try:
            close = getattr(body, "close", None)
            if close is not None:
                close()
        finally:
            if self.unit.state is OPEN:
                self._end()

    def _end(self) -> None:
        unit = self.unit
        current = unit.worker.guard.current
        if current.get() is unit:
            current.set(self.outer)
        unit.state = CLOSED
        if unit:
            unit.conclude(None)
        unit.source = None

    def __del__(self) -> None:
        unit: Request | None = getattr(self, "unit", None)
        if unit is None or unit.state is not OPEN:
            return
        import warnings

        name = unit.name
        self.close()
        warnings.warn(
            f"the server dropped the response of {name} without closing it (PEP 3333 says it "
            "must): its unit ended only now",
            UnclosedWarning,
            stacklevel=1,
        )


class _SizedBody(_Body):
    """The same for a body with a length: servers derive headers from it."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self.body)


def _refuse(environ: Environ, start_response: StartResponse, exc: Exception) -> Iterable[bytes]:
    closing = isinstance(exc, ClosedError)
    if not closing:
        logger("worker").error(
            "the worker could not be opened, so %s %s was answered with 500: %s",
            environ.get("REQUEST_METHOD", ""),
            environ.get("PATH_INFO", ""),
            failed_to_open(exc),
            exc_info=exc,
        )
    why = str(exc) if closing else "The worker of this app could not be opened: see its log."
    body = f"lifeguard: {why}\n".encode()
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    status = "503 Service Unavailable" if closing else "500 Internal Server Error"
    start_response(status, headers)
    return [body]
