"""The front door: ``Lifeguard``, and what kind of app ``wrap`` was given.

Everything a person calls is a method of one object, so that a guard of one's own is as complete as
the default one. The hosts are imported when their method is called: ``import lifeguard`` loads
nothing but the core.
"""

from __future__ import annotations

import importlib
import sys

from ._core import ends
from ._core.errors import redact
from ._core.guard import Guard
from ._core.observer import logger
from ._core.resource import adapters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from typing import Any, ParamSpec, TypeVar, overload

    from ._core.observer import Observer
    from ._core.resource import Resource
    from ._core.worker import Worker

    P = ParamSpec("P")
    R = TypeVar("R")
    App = TypeVar("App", bound=Callable[..., Any])
    AppT = TypeVar("AppT")
    StateT = TypeVar("StateT")

#: Libraries that have a host of their own, and how people ask for it.
hosts = {"django": 'add "lifeguard.django" to INSTALLED_APPS'}

#: Libraries whose workers begin and end in ways of their own, and who knows of them. They are asked
#: where a task is made and the library is there: a host is not imported for nothing.
task_hosts = {"celery": "lifeguard.celery"}

adapters["psycopg_pool"] = "lifeguard.psycopg"
adapters["psycopg"] = "lifeguard._psycopg_fork"
adapters["sqlalchemy"] = "lifeguard.sqlalchemy"


class Layer:
    """What a library's host does around an app, where each request is a unit already."""

    def asgi(self, app: Any) -> Any:
        return app

    def wsgi(self, app: Any) -> Any:
        return app


class Lifeguard(Guard):
    """Definitions of resources, the worker that has them open, and the doors to both.

    Parameters, all keyword-only, times in seconds:

    * *grace*: how long a closing worker waits for its running units, and how long its clean-up
      may take. What takes longer is named in the log and given up.
    * *open_timeout*: how long one pool may take to open.
    * *stack*: how many callers of a borrow are kept for the leak report: 0.1 microseconds each.
      Where something leaked once, twelve are kept from then on.
    * *observers*: see :class:`Observer`.
    * *handle_sigterm*: where nobody handles SIGTERM, let it unwind the program instead of
      killing it on the spot.
    * *die_with_parent*: end this worker in order when the process that started it is gone. A
      server's master that is killed leaves its workers behind otherwise, with their connections.
    * *cancel_on_disconnect*: cancel an HTTP app when its client is gone (most servers let it run
      on, holding its connection).
    * *safety_net*: let PostgreSQL end the connections of a worker that was killed or frozen, of
      pools that are resources. A mapping changes single settings, such as
      ``{"idle_in_transaction_session_timeout": "1min"}``, or leaves them alone (``None``); False
      sets nothing. What somebody else has set is never touched: see docs/pools.md.
    * *name*: what PostgreSQL calls this app in ``application_name``, instead of the program's
      name, if nobody sets another: ``<name>@<host>:<pid>``.

    Raises :exc:`TypeError` or :exc:`ValueError` for a *safety_net* or *name* that cannot be one.
    """

    def __init__(
        self,
        *,
        grace: float = 10.0,
        open_timeout: float = 30.0,
        stack: int = 2,
        observers: Sequence[Observer] = (),
        handle_sigterm: bool = True,
        die_with_parent: bool = False,
        cancel_on_disconnect: bool = False,
        safety_net: bool | Mapping[str, str | None] = True,
        name: str | None = None,
    ) -> None:
        if safety_net is not True or name is not None:
            from ._net import check_options

            check_options(safety_net, name)
        super().__init__(
            grace=grace,
            open_timeout=open_timeout,
            stack=stack,
            observers=observers,
            handle_sigterm=handle_sigterm,
            die_with_parent=die_with_parent,
        )
        self.cancel_on_disconnect = cancel_on_disconnect
        self.safety_net = safety_net
        self.name = name
        self.has_front_door = False  # an app is wrapped, so that requests are units
        self.layers: list[Layer] = []

    def wrap(self, app: App, *, resources: Iterable[object] = ()) -> App:
        """Guard an ASGI or WSGI app: the same kind comes out.

        Every request and websocket becomes a unit that ends exactly once, and this process a
        worker whose resources open before the first of them and close after the last.
        *resources* are objects that open and close (pools), context managers, or what
        ``@lifeguard.resource`` made.

        Raises :exc:`TypeError` for anything that is neither ASGI (2 or 3) nor WSGI.

        Example::

            app = lifeguard.wrap(app, resources=[pool])
        """
        kind = _kind_of_app(app)
        opened: list[Resource[Any]] = [self.adopt(obj) for obj in as_resources(resources)]
        if self.handle_sigterm:
            ends.take_sigterm()
        package = type(app).__module__.partition(".")[0]
        if package in hosts and not self.layers:
            logger("worker").warning(
                "an app of %s is wrapped, but what lifeguard does for %s is missing: %s.",
                package,
                package,
                hosts[package],
            )
        if kind == "wsgi":
            from .wsgi import wrap_wsgi

            return wrap_wsgi(app, self, opened)  # type: ignore[return-value]
        from .asgi import wrap_asgi

        if kind == "asgi2":
            from asgiref.compatibility import double_to_single_callable

            return wrap_asgi(double_to_single_callable(app), self, opened)  # type: ignore[return-value, no-untyped-call]
        return wrap_asgi(app, self, opened)  # type: ignore[return-value]

    def layered(self, protocol: str, app: Any) -> Any:
        """*app* with what the hosts of libraries put around it, inside of each unit."""
        for layer in self.layers:
            app = getattr(layer, protocol)(app)
        return app

    async def aacquire(
        self, resources: Iterable[Resource[Any]] = (), *, hold: bool = True
    ) -> Worker:
        """Open the worker, or join it. What the loop runs in threads cleans up after itself."""
        worker = await super().aacquire(resources, hold=hold)
        from .threads import guard_default_executor, guard_worker_threads

        guard_default_executor(worker)
        guard_worker_threads(self)
        return worker

    if TYPE_CHECKING:

        @overload
        def lifespan(
            self, func: Callable[[AppT], AsyncGenerator[StateT, None]], /
        ) -> Callable[[AppT], AbstractAsyncContextManager[StateT]]: ...
        @overload
        def lifespan(
            self, func: Callable[[AppT], AsyncIterator[StateT]], /
        ) -> Callable[[AppT], AbstractAsyncContextManager[StateT]]: ...
        @overload
        def lifespan(
            self, func: Callable[[AppT], AbstractAsyncContextManager[StateT]], /
        ) -> Callable[[AppT], AbstractAsyncContextManager[StateT]]: ...
        @overload
        def lifespan(
            self, /, *, resources: Iterable[object] = (), mounts: bool | Iterable[Any] = False
        ) -> Callable[
            [Callable[[Any], AsyncIterator[StateT]]],
            Callable[[Any], AbstractAsyncContextManager[StateT]],
        ]: ...

    def lifespan(
        self,
        func: Any = None,
        /,
        *,
        resources: Iterable[object] = (),
        mounts: bool | Iterable[Any] = False,
    ) -> Any:
        """The lifespan of a Starlette, FastAPI or Litestar app, entered once and left once.

        Decorate an async generator function that takes the app and yields its state. *resources*
        open before it and close after it. *mounts* are the sub-apps whose own lifespans are to
        run inside this one: they never would (starlette#649). ``True`` means all that are mounted.

        Example::

            @lifeguard.lifespan
            async def lifespan(app):
                async with AsyncConnectionPool(DSN, open=False) as pool:
                    yield {"pool": pool}

            app = FastAPI(lifespan=lifespan)
        """
        from ._lifespan import make_lifespan

        opened = [self.adopt(obj) for obj in as_resources(resources)]
        return make_lifespan(self, func, opened, mounts)

    def task(self, func: Callable[P, R], /) -> Callable[P, R]:
        """Make each call of *func* a unit. Sync stays sync, async stays async.

        Works on functions and methods. Raises :exc:`TypeError` for generators and classes.

        Example::

            @celery_app.task
            @lifeguard.task
            def charge(order_id): ...
        """
        from .threads import make_task

        task: Callable[P, R] = make_task(self, func)
        for library, host in task_hosts.items():
            if library in sys.modules:
                importlib.import_module(host).prepare(self, task, func)
        return task


def guard_of(guard: Lifeguard | None) -> Lifeguard:
    """*guard*, or the default one. Raises :exc:`TypeError` for what is none."""
    if guard is None:
        from . import _default

        return _default
    if not isinstance(guard, Lifeguard):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"guard= takes a lifeguard.Lifeguard, not {redact(repr(guard))}")
    return guard


def as_resources(resources: Iterable[object]) -> list[object]:
    """What people passed as ``resources=``. Raises :exc:`TypeError` for what is no list."""
    if isinstance(resources, (str, bytes)) or not hasattr(type(resources), "__iter__"):
        raise TypeError(
            f"resources= takes a list, not {type(resources).__name__}: resources=[pool]"
        )
    return list(resources)


_EXPECTED = (
    "pass an ASGI app (`async def app(scope, receive, send)`, FastAPI(), Starlette(), "
    "get_asgi_application()) or a WSGI app (`def app(environ, start_response)`, flask_app.wsgi_app)"
)


def _kind_of_app(app: Any) -> str:
    """``asgi``, ``asgi2`` or ``wsgi``, judged by how *app* can be called."""
    import inspect

    def wrong(what: str) -> TypeError:
        return TypeError(f"lifeguard.wrap() got {redact(what)}: {_EXPECTED}")

    if app is None:
        raise wrong("None")
    if inspect.isgenerator(app) or inspect.isasyncgen(app) or inspect.iscoroutine(app):
        raise wrong(f"a {type(app).__name__} (was a function called one time too often?)")
    if not callable(app):
        raise wrong(f"{app!r} of type {type(app).__qualname__}, which cannot be called")
    try:
        signature = inspect.signature(app)
    except (ValueError, TypeError):
        raise wrong(f"{app!r}, whose signature cannot be read") from None
    names = _required(signature.parameters)
    if isinstance(app, type):
        if names == ["scope"] and _is_async(inspect, app.__call__):
            return "asgi2"
        raise wrong(f"the class {app.__qualname__} instead of an instance of it")
    if _is_async(inspect, app):
        if len(names) == 3 or _takes_anything(inspect, signature):
            return "asgi"
        raise wrong(f"{app!r}, which is async but does not take (scope, receive, send)")
    if inspect.isasyncgenfunction(app):
        raise wrong(f"{app!r}, which is an async generator function")
    if len(names) == 3:
        return "asgi"  # a plain function that returns another app's coroutine
    if len(names) == 2 or (not names and _takes_anything(inspect, signature)):
        return "wsgi"  # wsgiref.validate takes (*args, **kwargs)
    if names == ["scope"]:
        return "asgi2"
    raise wrong(f"{app!r}, which takes {len(names)} arguments, so it is neither ASGI nor WSGI")


def _required(parameters: Mapping[str, Any]) -> list[str]:
    return [
        p.name
        for p in parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    ]


def _is_async(inspect: Any, app: Any) -> bool:
    while hasattr(app, "func"):
        app = app.func
    if inspect.isroutine(app):
        return bool(inspect.iscoroutinefunction(app))
    return bool(inspect.iscoroutinefunction(type(app).__call__))


def _takes_anything(inspect: Any, signature: Any) -> bool:
    return any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in signature.parameters.values())
