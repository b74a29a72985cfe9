"""A Django site in this process, and its clients: no server, so that each step is the test's.

Views are whatever a scenario defines: ``await site.get(view)``. It is set up once in a process,
with what the program says: bare or guarded, so many lanes, and what is kept between requests.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg

from tests.django.databases import database

WITHIN = 15.0
"""Seconds for what must happen, on a busy machine."""

DISCONNECT = {"type": "http.disconnect"}


@dataclass(frozen=True)
class Options:
    """What one process of the program is told. All of it is JSON."""

    dsn: str
    name: str
    guarded: bool = True
    lanes: int = 2
    keeps: str = "nothing"
    timeout: float = 30.0
    grace: float = 10.0
    engine: str = "django.db.backends.postgresql"
    file: str = ""


@dataclass
class Answer:
    status: int = 0
    body: bytes = b""
    chunks: int = 0
    error: BaseException | None = None

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class Request:
    """One request, from the server's side."""

    task: asyncio.Task[None]
    answer: Answer
    inbox: asyncio.Queue[dict[str, Any]]
    chunk: asyncio.Event = field(default_factory=asyncio.Event)

    def leave(self) -> None:
        self.inbox.put_nowait(DISCONNECT)

    async def end(self) -> Answer:
        async with asyncio.timeout(WITHIN):
            await asyncio.wait((self.task,))
        return self.answer


class Said(logging.Handler):
    """What lifeguard and Django have logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def __contains__(self, words: str) -> bool:
        return any(words in line for line in self.lines)


class Site:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.numbers = itertools.count(1)
        self.requests: list[Request] = []
        self.said = Said()
        logging.getLogger().addHandler(self.said)
        self.witness = psycopg.connect(
            psycopg.conninfo.make_conninfo(options.dsn, application_name=f"{options.name}.witness"),
            autocommit=True,
        )
        self.set_up()
        self.app = self.application()

    def set_up(self) -> None:
        import django
        from django.conf import settings

        options = self.options
        settings.configure(
            INSTALLED_APPS=["lifeguard.django"] if options.guarded else [],
            ALLOWED_HOSTS=["*"],
            SECRET_KEY="test",
            USE_TZ=True,
            ROOT_URLCONF="tests.django.lanes.urls",
            MIDDLEWARE=[],
            LOGGING_CONFIG=None,
            DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
            DATABASES={"default": self.database("default"), "other": self.database("other")},
            LIFEGUARD={
                "LANES": options.lanes,
                "LANE_TIMEOUT": options.timeout,
                "GUARD": "tests.django.lanes.guard.guard",
            },
        )
        if options.guarded:
            from tests.django.lanes import guard

            guard.guard.grace = options.grace
        django.setup()

    def database(self, alias: str) -> dict[str, Any]:
        options = self.options
        if "sqlite" in options.engine:
            name = ":memory:" if not options.file else f"{options.file}.{alias}"
            return {"ENGINE": options.engine, "NAME": name}
        more: dict[str, dict[str, Any]] = {
            "nothing": {"CONN_MAX_AGE": 0},
            "a second": {"CONN_MAX_AGE": 1},
            "for a minute": {"CONN_MAX_AGE": 60},
            "checked": {"CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True},
            "in a pool": {
                "CONN_HEALTH_CHECKS": True,
                "OPTIONS": {"pool": {"min_size": 1, "max_size": options.lanes, "timeout": 5}},
            },
        }
        return database(
            options.dsn,
            application_name=f"{options.name}.{alias}",
            **{"ENGINE": options.engine, **more[options.keeps]},
        )

    # -- requests ------------------------------------------------------------------------------

    def application(self, *middleware: Callable[..., Any]) -> Any:
        """The handler with this middleware, the outermost first; wrapped, if it is guarded."""
        from django.core.asgi import get_asgi_application
        from django.test.utils import override_settings

        from tests.django.lanes import urls

        names = []
        for func in middleware:
            name = f"{func.__name__}_{next(self.numbers)}"
            setattr(urls, name, func)
            names.append(f"tests.django.lanes.urls.{name}")
        with override_settings(MIDDLEWARE=names):
            return self.wrap(get_asgi_application())

    def wrap(self, app: Any) -> Any:
        if not self.options.guarded:
            return app
        from tests.django.lanes.guard import guard

        return guard.wrap(app)

    def start(self, view: Callable[..., Any], app: Any = None) -> Request:
        """A request for *view*, whose path is the view's name and a number."""
        from tests.django.lanes import urls

        path = f"/{view.__name__}-{next(self.numbers)}"
        urls.views[path.removeprefix("/")] = view
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "http",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"test")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        return self.send(scope, app or self.app)

    def send(self, scope: dict[str, Any], app: Any) -> Request:
        answer = Answer()
        inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        inbox.put_nowait({"type": "http.request", "body": b"", "more_body": False})

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
            elif message.get("body"):
                answer.body += message["body"]
                answer.chunks += 1
                request.chunk.set()

        async def run() -> None:
            try:
                await app(scope, inbox.get, send)
            except BaseException as exc:
                answer.error = exc

        # In a context of its own, as a server's request is.
        task = asyncio.create_task(run())
        request = Request(task, answer, inbox)
        self.requests.append(request)
        return request

    async def end_requests(self) -> None:
        """A scenario has failed in the middle: the next one shall not suffer for it."""
        for request in self.requests:
            request.task.cancel()
        await asyncio.wait([request.task for request in self.requests], timeout=5)
        self.requests.clear()

    async def get(self, view: Callable[..., Any], app: Any = None) -> Answer:
        return await self.start(view, app).end()

    async def get_all(self, views: list[Callable[..., Any]], app: Any = None) -> list[Answer]:
        """All of them at once."""
        requests = [self.start(view, app) for view in views]
        return [await request.end() for request in requests]

    async def meet(self, number: int | None = None) -> None:
        """So many requests, each of which has a connection until all of them have one."""
        from django.db import transaction
        from django.http import HttpResponse

        number = number or self.options.lanes
        barrier = threading.Barrier(number)

        def meet(request: Any) -> HttpResponse:
            with transaction.atomic():
                pid = backend()
                barrier.wait(WITHIN)
            return HttpResponse(str(pid))

        answers = await self.get_all([meet] * number)
        assert [answer.status for answer in answers] == [200] * number, self.said.lines[-3:]
        assert len({answer.text for answer in answers}) == number

    # -- what there is -------------------------------------------------------------------------

    def ask(self, sql: str, *params: Any) -> list[Any]:
        """The rows that a session beside the site gets, as a tuple each, or bare values."""
        rows = self.witness.execute(sql, params).fetchall()
        return [row[0] if len(row) == 1 else row for row in rows]

    def backends(self, alias: str = "default") -> int:
        (count,) = self.ask(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s",
            f"{self.options.name}.{alias}",
        )
        return int(count)

    def lanes(self) -> list[dict[str, Any]]:
        from lifeguard.django import status

        lanes: list[dict[str, Any]] = status()["lanes"]
        return lanes

    def held(self) -> list[str]:
        """Why lanes are held now."""
        return [lane["why"] for lane in self.lanes() if lane["state"] == "held"]

    def are_free(self) -> bool:
        return all(lane["state"] == "free" for lane in self.lanes())

    def kept(self) -> int:
        """How many connections to a database may stay."""
        return 0 if self.options.keeps == "nothing" else self.options.lanes

    async def is_quiet(self) -> None:
        """No lane is taken, and what should be closed is closed."""
        await until(self.are_free, lambda: f"a lane is taken: {self.lanes()}")
        await until(
            lambda: max(self.backends("default"), self.backends("other")) <= self.kept(),
            lambda: (
                f"too many: {self.backends('default')}, {self.backends('other')}\n"
                f"outside of lanes: {self.threads()}"
            ),
        )

    def threads(self) -> list[dict[str, Any]]:
        """Those outside of the lanes that have a connection."""
        from lifeguard.django import status

        threads: list[dict[str, Any]] = status()["threads"]
        return threads

    async def left(self) -> int:
        """How many connections are too many, or with nobody, after a while."""
        deadline = time.monotonic() + (WITHIN if self.options.guarded else 0.3)
        while (left := self._left()) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        return left

    def _left(self) -> int:
        if self.options.keeps == "in a pool":
            from django.db import connections

            stats = connections["default"].pool.get_stats()
            return int(stats.get("pool_size", 0) - stats.get("pool_available", 0))
        return max(0, self.backends() - self.kept())


async def until(
    true: Callable[[], bool], what: Callable[[], str] = lambda: "it did not come true"
) -> None:
    deadline = time.monotonic() + WITHIN
    while not true():
        assert time.monotonic() < deadline, what()
        await asyncio.sleep(0.005)


async def soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(WITHIN):
        await event.wait()


def backend(alias: str = "default") -> int:
    """Which backend answers in this thread."""
    from django.db import connections

    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid: int = cursor.fetchone()[0]
    return pid


def run_sql(sql: str, *params: Any, alias: str = "default") -> list[Any]:
    from django.db import connections

    with connections[alias].cursor() as cursor:
        cursor.execute(sql, params or None)
        return list(cursor.fetchall()) if cursor.description else []
