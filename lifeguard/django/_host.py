"""Attaches one guard to Django: signals, the layer around wrapped apps, names for PostgreSQL."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import threading

from django.conf import settings
from django.core import signals
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.signals import connection_created

from .._core.errors import NotOpenError
from .._core.lanes import Lanes
from .._core.lifetime import Exit
from .._core.resource import Resource
from .._core.unit import plumbing
from .._net import application_name
from .._wrap import Layer, hosts
from . import _connections, _tasks
from ._finish import note_responses, on_finished, on_started, send_to_all, start_in_lane
from ._forks import Forks
from ._requests import DjangoLayer
from ._settings import Options, problems, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._wrap import Lifeguard

_options: Options | None = None
_lanes: Any = None  # the resource
_forks: Forks | None = None


def guard() -> Lifeguard:
    """The guard that Django's requests and jobs belong to."""
    assert _options is not None
    return _options.guard


def attach() -> None:
    """Do it once: Django is ready. Opens nothing; that is the worker's business."""
    from .. import _default

    global _forks, _lanes, _options
    if _options is not None:
        return
    wrong = problems(settings)
    if wrong:
        _refuse_to_open(wrong)
        return
    _options = options = read(settings)

    _lanes = options.guard.define(LanesResource(options))
    _forks = Forks(options.guard)
    options.guard.layers.append(DjangoLayer(options.guard, _lanes_now))
    if not _default.layers:
        hosts["django"] = "wrap it with the guard that LIFEGUARD['GUARD'] names"
    connection_created.connect(_on_connection, dispatch_uid="lifeguard")
    signals.request_started.connect(on_started, dispatch_uid="lifeguard")
    signals.request_finished.connect(on_finished, dispatch_uid="lifeguard")
    note_responses()
    plumbing.update(("django", "asgiref", "psycopg", "psycopg_binary", "psycopg2", "channels"))
    send_to_all()
    start_in_lane()
    if any("postg" in database.get("ENGINE", "") for database in settings.DATABASES.values()):
        _name_connections(options.name)
    from asgiref.sync import SyncToAsync

    from ..threads import LoopJob, guard_jobs

    # Thread-sensitive code outside of requests: a lifespan, a script. One thread, for ever.
    guard_jobs(options.guard, SyncToAsync.single_thread_executor, LoopJob)
    if options.executors:
        from ._executors import guard_all

        guard_all(options.guard)
    if "celery" in sys.modules:  # by the module that makes the project's Celery app
        from . import _celery

        _celery.attach(options.guard)
    _tasks.attach(options.guard)
    if importlib.util.find_spec("channels") is not None:
        from ._channels import a_unit_per_message

        a_unit_per_message(options.guard)


def _refuse_to_open(wrong: list[str]) -> None:
    """The checks say what is wrong. A server must not start without what it was asked for."""
    from .. import _default

    def django_settings() -> Any:
        raise ImproperlyConfigured(" ".join(wrong))

    _default.resource(django_settings)
    _default.layers.append(Layer())  # what is missing is not the app in INSTALLED_APPS


def _on_connection(connection: Any, **_: Any) -> None:
    _connections.opened(connection, guard())
    if _forks is not None:
        _forks.opened()


class LanesResource(Resource[Lanes]):
    """The worker's part: its lanes, and at its end every connection that Django still has."""

    __slots__ = ("options",)

    def __init__(self, options: Options) -> None:
        name = "lanes of Django"
        super().__init__(self.open, guard=options.guard, name=name, made="lifeguard.django")
        self.options = options

    @property
    def awaits(self) -> bool:
        return False  # it opens anywhere

    def open(self, awaits: bool) -> tuple[Lanes, Exit]:
        options = self.options
        lanes = Lanes(
            options.lanes,
            timeout=options.lane_timeout,
            patience=options.guard.grace,
            care=_connections.ConnectionCare(),
            setting="LIFEGUARD['LANES']",
        )
        return lanes, _Close(lanes, options.guard.grace, awaits)


class _Close(Exit):
    """Ends the lanes, in the loop if there is one: their last jobs may need it."""

    __slots__ = ("awaits", "grace", "lanes")

    def __init__(self, lanes: Lanes, grace: float, awaits: bool) -> None:
        self.lanes = lanes
        self.grace = grace
        self.awaits = awaits

    def run(self, awaits: bool) -> object:
        if awaits:
            return self._aclose()
        self.lanes.close(self.grace)
        if asyncio._get_running_loop() is None:
            _connections.close_all()
        else:  # Django does not let a thread touch connections while a loop runs in it
            closer = threading.Thread(target=_connections.close_all)
            closer.start()
            closer.join(self.grace)
        return None

    async def _aclose(self) -> None:
        import anyio

        try:
            await self.lanes.aclose()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_connections.close_all)

    def abandon(self) -> bool:
        self.run(awaits=False)
        return True


def _lanes_now() -> Lanes:
    try:
        lanes: Lanes = _lanes.get()
    except NotOpenError:  # Django came into a worker that was open already
        lanes = guard().acquire([_lanes], hold=False).values[_lanes]
    return lanes


def _name_connections(name: str) -> None:
    """``<NAME>@<host>:<pid> lane 3`` for connections whose settings name none."""
    try:
        from django.db.backends.postgresql.base import DatabaseWrapper
    except ImproperlyConfigured:  # no driver, as Django itself will say where it needs one
        return

    get_connection_params = DatabaseWrapper.get_connection_params

    def named_params(self: Any) -> Any:
        params = get_connection_params(self)
        if "application_name" in params or "service" in params or "PGAPPNAME" in os.environ:
            return params
        lane = 0 if self.settings_dict.get("OPTIONS", {}).get("pool") else _connections.thread.lane
        params["application_name"] = application_name(name, f" lane {lane}" if lane else "")
        return params

    DatabaseWrapper.get_connection_params = named_params


def status() -> dict[str, Any]:
    """See :func:`lifeguard.django.status`."""
    lanes: Lanes | None = None
    name = ""
    if _options is not None:
        name = application_name(_options.name)
        lanes = _options.guard._worker.values.get(_lanes)
    return {
        "pid": os.getpid(),
        "application_name": name,
        "lanes": [] if lanes is None else lanes.describe(),
        "waiting": [] if lanes is None else lanes.waiting(),
        "threads": _connections.outside(),
    }
