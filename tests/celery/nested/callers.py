"""Who calls a task in its own thread, in how many ways, and what becomes of the caller's rows.

Each caller writes a row, calls the task, and goes on. It answers with the backends it had before
and after, and with what it raised. Whether its rows are there is for the test to see, from outside.
"""

from __future__ import annotations

import contextlib
import functools
import os
import unittest
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from celery import Celery
from celery.app.trace import build_tracer
from celery.contrib.testing.worker import start_worker
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import TestCase
from django.test.client import RequestFactory
from django.urls import path
from psycopg_pool import ConnectionPool

import lifeguard

Call = Callable[[], object]

rows: list[str] = []  # of the caller that runs now
token = ""


def insert(value: str) -> int:
    """One row through Django's connection of this thread. The backend that wrote it."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO lifeguard_nested VALUES (%s) RETURNING pg_backend_pid()",
            [f"{token}{value}"],
        )
        rows.append(f"{token}{value}")
        backend: int = cursor.fetchone()[0]
    return backend


# -- the tasks ------------------------------------------------------------------------------------


def body(fail: bool = False) -> int:
    backend = insert("task")
    if fail:
        raise KeyError("the task")
    return backend


async def async_body(fail: bool = False) -> int:
    """It runs in another thread, where it has a connection of its own."""
    async with await psycopg.AsyncConnection.connect(
        os.environ["NESTED_DSN"], application_name=os.environ["NESTED_NAME"]
    ) as conn:
        row = await (await conn.execute("SELECT pg_backend_pid()")).fetchone()
    if fail:
        raise KeyError("the task")
    assert row is not None
    return int(row[0])


def cleaned_up(cleanup: Call) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What people write against connections that are left behind."""

    def decorate(func: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(func)
        def cleaned(*args: Any, **kwargs: Any) -> Any:
            try:
                return func(*args, **kwargs)
            finally:
                cleanup()

        return cleaned

    return decorate


def make(arrangement: str) -> tuple[Celery, Any]:
    """A Celery app and its task, arranged as people would."""
    app = Celery("nested", broker="memory://", backend="cache+memory://", set_as_current=True)
    app.conf.task_always_eager = True
    app.conf.worker_hijack_root_logger = False
    if arrangement == "celery":
        return app, app.task(name="nested")(body)
    if arrangement == "close_all":
        return app, app.task(name="nested")(cleaned_up(connections.close_all)(body))
    if arrangement == "close_old_connections":
        from django.db import close_old_connections

        return app, app.task(name="nested")(cleaned_up(close_old_connections)(body))
    if arrangement == "lifeguard.task":
        return app, app.task(name="nested")(lifeguard.task(body))
    from lifeguard import celery

    if arrangement == "lifeguard.celery.task":
        return app, app.task(name="nested")(celery.task(body))
    if arrangement == "async def":
        return app, app.task(name="nested")(celery.task(async_body))
    assert arrangement == "install", arrangement
    celery.install(app)
    return app, app.task(name="nested")(body)


# -- how it is called -----------------------------------------------------------------------------


def ways(app: Celery, task: Any) -> dict[str, Call]:
    trace = build_tracer(task.name, task, app=app)

    def inline() -> object:
        return task()

    def failing() -> None:
        assert task.apply(kwargs={"fail": True}).state == "FAILURE"

    def failing_inline() -> None:
        with contextlib.suppress(KeyError):
            task(fail=True)

    def traced() -> object:
        # As the worker does it, here in the caller's thread.
        uid = uuid.uuid4().hex
        traced = trace(uid, (), {}, {"id": uid})
        assert traced.info is None, traced
        return traced.retval

    def nested() -> object:
        @app.task(name="outer")
        @lifeguard.task
        def outer() -> object:
            task.delay().get(disable_sync_subtasks=False)
            return task.apply().get(disable_sync_subtasks=False)

        return outer.delay().get()

    return {
        "delay": lambda: task.delay().get(),
        "apply": lambda: task.apply().get(),
        "inline": inline,
        "failing": failing,
        "failing inline": failing_inline,
        "nested": nested,
        "trace": traced,
    }


# -- who calls it ---------------------------------------------------------------------------------


def in_atomic(call: Call) -> list[int]:
    """And more SQL after the call."""
    with transaction.atomic():
        before = insert("first")
        call()
        return [before, insert("second")]


def last_in_atomic(call: Call) -> list[int]:
    """The call is the last thing in the block: whatever it breaks, nobody asks the database."""
    with transaction.atomic():
        before = insert("first")
        call()
    return [before]


def in_savepoint(call: Call) -> list[int]:
    with transaction.atomic():
        before = insert("first")
        with transaction.atomic():
            call()
        return [before, insert("second")]


def in_autocommit(call: Call) -> list[int]:
    before = insert("first")
    call()
    return [before, insert("second")]


def without_autocommit(call: Call) -> list[int]:
    """A transaction that Django knows nothing of but that autocommit is off."""
    transaction.set_autocommit(False)
    try:
        before = insert("first")
        call()
        after = insert("second")
        transaction.commit()
    finally:
        transaction.set_autocommit(True)
    return [before, after]


def on_commit(call: Call) -> list[int]:
    """What Django's documentation advises: the task starts when its rows are there."""
    with transaction.atomic():
        before = insert("first")
        transaction.on_commit(lambda: void(call()))
    return [before, insert("second")]


def void(_: object) -> None: ...


def in_unit(call: Call) -> list[int]:
    with lifeguard.unit():
        return in_atomic(call)


def in_unit_and_autocommit(call: Call) -> list[int]:
    with lifeguard.unit():
        return in_autocommit(call)


def in_request(call: Call) -> list[int]:
    """A view of a wrapped Django app, which is a unit."""
    return ask(lambda: in_atomic(call))


def in_request_and_autocommit(call: Call) -> list[int]:
    return ask(lambda: in_autocommit(call))


def ask(work: Callable[[], list[int]]) -> list[int]:
    answers: list[list[int]] = []

    def view(request: HttpRequest) -> HttpResponse:
        answers.append(work())
        return HttpResponse("done")

    urlpatterns[:] = [path("", view)]
    environ = RequestFactory()._base_environ(PATH_INFO="/")
    said: list[str] = []
    body = application()(environ, lambda status, *_: said.append(status))
    assert b"".join(body) == b"done"
    if hasattr(body, "close"):
        body.close()
    assert said == ["200 OK"]
    return answers[0]


@functools.cache
def application() -> Any:
    return lifeguard.wrap(WSGIHandler())


urlpatterns: list[Any] = []


def in_test_case(call: Call) -> list[int]:
    """A test of the project's own, which Django rolls back at its end: it looks for itself."""
    backends: list[int] = []

    class ATest(TestCase):
        databases = {"default"}

        def test_it(self) -> None:
            backends.append(insert("first"))
            call()
            backends.append(insert("second"))
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT count(*) FROM lifeguard_nested WHERE starts_with(value, %s)", [token]
                )
                assert cursor.fetchone()[0] == len(rows)

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(ATest).run(result)
    for _, said in result.errors + result.failures:
        raise AssertionError(said)
    rows.clear()
    return backends


def with_a_psycopg_connection(call: Call) -> list[int]:
    """Not Django's, in the middle of a transaction."""
    with psycopg.connect(
        os.environ["NESTED_DSN"], application_name=os.environ["NESTED_NAME"]
    ) as conn:
        before = insert_on(conn, "first")
        call()
        return [before, insert_on(conn, "second")]


def with_a_connection_of_a_pool(call: Call) -> list[int]:
    """Borrowed from a pool that is a resource, by the unit that calls."""
    with lifeguard.unit(), pool.get().connection() as conn:
        before = insert_on(conn, "first")
        call()
        return [before, insert_on(conn, "second")]


def with_a_connection_held_by_hand(call: Call) -> list[int]:
    """Without a ``with`` block: nothing but the unit's end takes it back."""
    with lifeguard.unit():
        conn = pool.get().getconn()
        before = insert_on(conn, "first")
        call()
        after = insert_on(conn, "second")
        conn.commit()
        pool.get().putconn(conn)
        return [before, after]


def insert_on(conn: psycopg.Connection[Any], value: str) -> int:
    row = conn.execute(
        "INSERT INTO lifeguard_nested VALUES (%s) RETURNING pg_backend_pid()", [f"{token}{value}"]
    ).fetchone()
    rows.append(f"{token}{value}")
    return int(row[0])


@lifeguard.resource
def pool() -> Iterator[ConnectionPool[psycopg.Connection[Any]]]:
    with ConnectionPool(
        os.environ["NESTED_DSN"],
        kwargs={"application_name": os.environ["NESTED_NAME"]},
        min_size=1,
        max_size=2,
        open=False,
    ) as pool:
        yield pool


CALLERS = {
    caller.__name__: caller
    for caller in (
        in_atomic,
        last_in_atomic,
        in_savepoint,
        in_autocommit,
        without_autocommit,
        on_commit,
        in_unit,
        in_unit_and_autocommit,
        in_request,
        in_request_and_autocommit,
        in_test_case,
        with_a_psycopg_connection,
        with_a_connection_of_a_pool,
        with_a_connection_held_by_hand,
    )
}


# -- all together ---------------------------------------------------------------------------------

kept: list[object] = []


def run(request: dict[str, Any]) -> dict[str, Any]:
    """What each caller had, and what it raised; the rows that it believes to have written."""
    global token
    app, task = make(request["arrangement"])
    way = request["way"]
    call = ways(app, task)[way]
    answers: dict[str, Any] = {}
    if way == "trace":
        # A worker in this process, as tests of projects have one: its fixup is connected now.
        # Its end would take four seconds, so it goes with this process.
        embedded = start_worker(app, pool="solo", perform_ping_check=False, loglevel="CRITICAL")
        kept.append(embedded)
        embedded.__enter__()
    for name in request["callers"]:
        rows.clear()
        token = f"{request['name']}{name}."
        answer: dict[str, Any] = {"raised": None, "backends": [], "token": token}
        try:
            answer["backends"] = CALLERS[name](call)
        except Exception as exc:
            answer["raised"] = f"{type(exc).__name__}: {exc}"
        answer["rows"] = list(rows)
        answers[name] = answer
        with contextlib.suppress(Exception):
            connections.close_all()
    lifeguard._default._worker.end()
    return answers
