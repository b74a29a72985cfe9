"""``lifeguard.celery.install(app)``: every task is a unit, however it was made, and only once.

In this process, without a worker: tasks are traced by Celery's own tracer, in this thread. What a
worker does with them is in the other files of this folder.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from celery import Celery, Task, chain, chord, group, shared_task
from celery.app.trace import build_tracer
from celery.canvas import Signature
from pydantic import BaseModel

import lifeguard.celery
from lifeguard import Lifeguard
from lifeguard.testing import Postgres

pytestmark = pytest.mark.usefixtures("own_tasks")


@dataclass
class Notes:
    """What tasks note of themselves: how many units their own call is, and of which guard."""

    guard: Lifeguard
    units: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    def take(self) -> None:
        wrappers = [frame for frame in inspect.stack() if frame.filename == THREADS]
        self.units.append(sum(frame.function.startswith("lifeguard_task") for frame in wrappers))
        self.names.append(str(self.guard.current.get()))
        self.guard.callback(self.ended.append, "unit")


THREADS = inspect.getsourcefile(lifeguard.ThreadPoolExecutor)


@pytest.fixture
def notes(guard: Lifeguard) -> Notes:
    return Notes(guard)


def trace(task: Any, *args: Any, **kwargs: Any) -> Any:
    """Execute it as a worker does, not eager."""
    id = uuid.uuid4().hex
    traced = build_tracer(task.name, task, app=task.app)(id, args, kwargs, {"id": id})
    assert traced.info is None, traced
    return traced.retval


def every_kind(app: Celery, guard: Lifeguard, notes: Notes, prefix: str) -> list[Any]:
    """A task of every kind that Celery knows, and of those that lifeguard's decorators make."""

    @app.task(name=f"{prefix}.plain")
    def plain() -> None:
        notes.take()

    @app.task(name=f"{prefix}.lazy", lazy=False)
    def not_lazy() -> None:
        notes.take()

    @shared_task(name=f"{prefix}.{app.main}.shared")
    def shared() -> None:
        notes.take()

    @app.task(name=f"{prefix}.bound", bind=True)
    def bound(self: Any) -> None:
        assert self.name == f"{prefix}.bound"
        notes.take()

    class Methodical(Task):  # type: ignore[misc]
        name = f"{prefix}.class"

        def run(self) -> None:
            notes.take()

    class Base(Task):  # type: ignore[misc]
        abstract = True

        def before_start(self, *_: Any) -> None: ...

        def on_success(self, *_: Any) -> None: ...

    @app.task(name=f"{prefix}.base", base=Base)
    def with_base() -> None:
        notes.take()

    @app.task(name=f"{prefix}.autoretry", autoretry_for=(KeyError,))
    def autoretry() -> None:
        notes.take()

    @app.task(name=f"{prefix}.decorated")
    @guard.task
    def decorated() -> None:
        notes.take()

    @app.task(name=f"{prefix}.celery decorated")
    @lifeguard.celery.task(guard=guard)
    def celery_decorated() -> None:
        notes.take()

    @app.task(name=f"{prefix}.async")
    async def asynchronous() -> None:
        notes.take()

    @app.task(name=f"{prefix}.async autoretry", autoretry_for=(KeyError,))
    async def async_autoretry() -> None:
        notes.take()

    @app.task(name=f"{prefix}.async bound", bind=True)
    async def async_bound(self: Any) -> None:
        assert self.name == f"{prefix}.async bound"
        notes.take()

    @app.task(name=f"{prefix}.async decorated")
    @lifeguard.celery.task(guard=guard)
    async def async_decorated() -> None:
        notes.take()

    tasks = [
        plain,
        not_lazy,
        shared,
        bound,
        app.register_task(Methodical()),
        with_base,
        autoretry,
        decorated,
        celery_decorated,
        asynchronous,
        async_autoretry,
        async_bound,
        async_decorated,
    ]
    return [app.tasks[task.name] for task in tasks]


@pytest.mark.parametrize("when", ["before", "after"])
def test_each_execution_is_one_unit_of_whatever_kind_of_task(
    app: Celery, guard: Lifeguard, notes: Notes, when: str
) -> None:
    """Made before ``install`` or after it, decorated or not, sync or async: traced as a worker
    does, eager, and called inline, each is one unit, which has ended when it is over."""
    app.set_current()  # for what is shared
    if when == "before":
        tasks = every_kind(app, guard, notes, when)
        lifeguard.celery.install(app, guard=guard)
    else:
        lifeguard.celery.install(app, guard=guard)
        tasks = every_kind(app, guard, notes, when)
    for task in tasks:
        for execute in (trace, lambda task: task.delay().get(), lambda task: task()):
            notes.units.clear()
            notes.ended.clear()
            execute(task)
            assert notes.units == [1], task
            assert notes.ended == ["unit"], task


def test_install_may_be_called_again(app: Celery, guard: Lifeguard, notes: Notes) -> None:
    """By the settings of a project and by a library, say. Once is enough, and twice no harm."""
    for _ in range(3):
        lifeguard.celery.install(app, guard=guard)

    @app.task
    def charge() -> None:
        notes.take()

    trace(charge)
    assert notes.units == [1]


def test_the_fixup_does_the_same_for_an_app_that_is_being_made() -> None:
    """``Celery(fixups=[...])``: with the default guard, and beside Celery's own fixups."""
    fixups = [*Celery.builtin_fixups, "lifeguard.celery:fixup"]
    app = Celery("shop", broker="memory://", set_as_current=False, fixups=fixups)
    units: list[Any] = []

    @app.task
    def charge() -> None:
        units.append(lifeguard._default.current.get())

    charge.apply().get()
    assert len(units) == 1 and units[0] is not None
    lifeguard._default._worker.end()


def test_apps_may_have_guards_of_their_own(app: Celery, guard: Lifeguard) -> None:
    """Two apps in one process, each with its guard; a third one is left alone."""
    other, alone = (Celery(f"shop-{n}", set_as_current=False) for n in range(2))
    other_guard = Lifeguard(handle_sigterm=False)
    lifeguard.celery.install(app, guard=guard)
    lifeguard.celery.install(other, guard=other_guard)
    seen: list[tuple[bool, bool]] = []

    def charge() -> None:
        units = (guard.current.get(), other_guard.current.get())
        seen.append((units[0] is not None, units[1] is not None))

    for each in (app, other, alone):
        each.task(name="charge")(charge).apply()
    assert seen == [(True, False), (False, True), (False, False)]
    other_guard._worker.end()


def test_what_a_canvas_calls_is_a_unit_each(app: Celery, guard: Lifeguard, notes: Notes) -> None:
    """Chains, groups and chords. Celery's own tasks for them are left as they are."""
    app.set_current()
    lifeguard.celery.install(app, guard=guard)

    @app.task
    def add(*numbers: int) -> int:
        notes.take()
        return sum(numbers)

    @app.task
    def total(numbers: list[int]) -> int:
        notes.take()
        return sum(numbers)

    def run(canvas: Signature) -> Any:
        notes.units.clear()
        return canvas.apply_async().get()

    assert run(chain(add.s(1, 1), add.s(2), add.s(3))) == 7
    assert notes.units == [1, 1, 1]
    assert run(group(add.s(n, n) for n in range(4))) == [0, 2, 4, 6]
    assert notes.units == [1] * 4
    assert run(chord((add.s(n, n) for n in range(3)), total.s())) == 6
    assert notes.units == [1] * 4
    for name, task in app.tasks.items():
        if name.startswith("celery."):
            assert not lifeguard.threads.is_task(task.run), name


def test_a_call_of_a_tasks_own_class_goes_on_as_before(
    app: Celery, guard: Lifeguard, notes: Notes
) -> None:
    """``__call__`` of a base class, as libraries have it, and the unit inside of it."""
    lifeguard.celery.install(app, guard=guard)
    called: list[str] = []

    class InAppContext(Task):  # type: ignore[misc]
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            called.append("before")
            try:
                return super().__call__(*args, **kwargs)
            finally:
                called.append("after")

    @app.task(base=InAppContext)
    def charge(order: int) -> int:
        notes.take()
        called.append(f"charge {order}")
        return order

    assert trace(charge, 7) == 7
    assert called == ["before", "charge 7", "after"]
    assert notes.units == [1]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_task_looks_to_celery_as_it_did(app: Celery, guard: Lifeguard, kind: str) -> None:
    """Its name, its documentation, and its arguments, which ``delay()`` checks."""
    app.conf.task_always_eager = False
    lifeguard.celery.install(app, guard=guard)

    def charge(order: int, *, twice: bool = False) -> tuple[int, bool]:
        """Take the money."""
        return order, twice

    async def acharge(order: int, *, twice: bool = False) -> tuple[int, bool]:
        """Take the money."""
        return order, twice

    func = charge if kind == "sync" else acharge
    installed = app.task(func)
    decorated = app.task(name="decorated")(lifeguard.celery.task(guard=guard)(func))
    assert installed.name == f"{__name__}.{func.__name__}"
    for task in (app.tasks[installed.name], app.tasks[decorated.name]):
        assert task.__doc__ == "Take the money." and task.__module__ == __name__
        assert task.apply((3,), {"twice": True}).get() == (3, True)
        for wrong in ((), (1, 2)):
            with pytest.raises(TypeError, match="argument"):
                task.delay(*wrong)


class Order(BaseModel):
    n: int


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_task_that_takes_a_model_gets_one(app: Celery, guard: Lifeguard, kind: str) -> None:
    """``@app.task(pydantic=True)`` reads the annotations, which are text in this module: their
    names are looked up where the task was written."""

    def charge(order: Order) -> str:
        return type(order).__name__

    async def acharge(order: Order) -> str:
        return type(order).__name__

    decorated = (
        guard.task(charge) if kind == "sync" else lifeguard.celery.task(acharge, guard=guard)
    )
    app.conf.task_always_eager = True
    assert app.task(pydantic=True)(decorated).delay({"n": 1}).get() == "Order"


def test_a_task_has_its_own_request(app: Celery, guard: Lifeguard) -> None:
    """``bind=True``, sync and async, also where one task calls another inline."""
    lifeguard.celery.install(app, guard=guard)

    @app.task(bind=True)
    async def inner(self: Any) -> Any:
        return self.request.id, self.request.called_directly

    @app.task(bind=True)
    def outer(self: Any) -> Any:
        before = self.request.id
        eager = inner.apply(task_id="the inner one").get(disable_sync_subtasks=False)
        inline = inner()
        return before, eager, inline[1], self.request.id

    answer = outer.apply(task_id="the outer one").get()
    assert answer == ("the outer one", ("the inner one", False), True, "the outer one")


def test_a_report_names_the_task(
    app: Celery, guard: Lifeguard, pg: Postgres, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that a task does not give back: it is taken back, and the report says by
    which function it was borrowed, in which file."""
    from psycopg_pool import ConnectionPool

    @guard.resource
    def db() -> Iterator[ConnectionPool[Any]]:
        with ConnectionPool(dsn, open=False, min_size=1, max_size=1, timeout=40) as pool:
            yield pool

    lifeguard.celery.install(app, guard=guard)

    @app.task
    def charge() -> int:
        row: Any = db.get().getconn().execute("SELECT 1").fetchone()
        return int(row[0])

    def three_times() -> list[int]:
        return [trace(charge) for _ in range(3)]

    with pytest.warns(lifeguard.LeakWarning):
        assert three_times() == [1, 1, 1]
    reports = [record.message for record in caplog.records if record.name == "lifeguard.leaks"]
    assert len(reports) == 3
    for report in reports:
        assert "charge" in report and __file__.rpartition("/")[2] in report
    guard._worker.end()  # before anybody counts what is left


# -- a worker inside of a program -----------------------------------------------------------------

INSIDE = """
from celery import Celery
from celery.contrib.testing.worker import start_worker
import lifeguard.celery

app = Celery("shop", broker="memory://", backend="cache+memory://")

@lifeguard.resource
async def db():
    print("open", flush=True)
    yield 5
    print("close", flush=True)

@app.task
@lifeguard.task
def charge():
    return db.get()

with start_worker(app, perform_ping_check=False, loglevel="CRITICAL") as worker:
    print(charge.delay().get(timeout=20), flush=True)
    worker.stop()
print("the process goes on", flush=True)
try:
    charge()
except TypeError as exc:
    print("is async: open it where there is an event loop" in str(exc), flush=True)
"""


@pytest.mark.celery
def test_a_worker_that_is_stopped_inside_of_a_program_closes() -> None:
    """The process lives on, without what the worker had open, and without its loop."""
    result = subprocess.run(
        [sys.executable, "-c", INSIDE], capture_output=True, text=True, timeout=55, check=False
    )
    said = ["open", "5", "close", "the process goes on", "True"]
    assert result.stdout.split("\n")[:-1] == said, result.stderr
