"""What people get wrong with Celery at first: each mistake has an error that says what to do.

Most are found where the module with the tasks is imported, which is before a worker takes any.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from celery import Celery, Task, shared_task

import lifeguard.celery
from lifeguard import Lifeguard, LifeguardError
from tests.celery.worker import Workers

pytestmark = pytest.mark.usefixtures("own_tasks")

HERE = re.escape(__file__)

Decorator = Callable[[Any], Any]


@pytest.fixture(params=["lifeguard.task", "lifeguard.celery.task"])
def decorate(request: pytest.FixtureRequest, guard: Lifeguard) -> Decorator:
    if request.param == "lifeguard.task":
        return guard.task
    decorator: Decorator = lifeguard.celery.task(guard=guard)
    return decorator


def charge() -> int:
    return 5


async def acharge() -> int:
    return 5


def pages() -> Iterator[int]:
    yield 5


async def apages() -> AsyncIterator[int]:
    yield 5


# -- decorators -----------------------------------------------------------------------------------


@pytest.mark.parametrize("func", [charge, acharge])
@pytest.mark.parametrize("how", ["app.task", "not lazy", "shared_task"])
def test_the_decorators_in_the_wrong_order(
    app: Celery, decorate: Decorator, func: Any, how: str
) -> None:
    """``@lifeguard.task`` above ``@app.task`` gets a task and not a function. What it made of
    that would run, and be no task any more."""
    name = f"shop.{func.__name__}"
    app.set_current()  # for what is shared
    if how == "shared_task":
        task = shared_task(name=name)(func)
    else:
        task = app.task(name=name, lazy=how == "app.task")(func)
    wanted = (
        rf"^@lifeguard\.task was given the task <@task: {name} of .*>, which has a \.delay\(\) "
        r"already: put @lifeguard\.task directly above the function, and the decorator of the "
        r"task queue above that$"
    )
    with pytest.raises(TypeError, match=wanted):
        decorate(task)


def test_a_task_class_is_no_function(app: Celery, decorate: Decorator) -> None:
    class Charge(Task):  # type: ignore[misc]
        name = "charge"

        def run(self) -> None: ...

    with pytest.raises(TypeError, match=r"takes a function, not the class .*Charge: decorate the"):
        decorate(Charge)
    with pytest.raises(TypeError, match=r"was given the task <@task: charge of .*>, which has a"):
        decorate(Charge())


@pytest.mark.parametrize("func", [pages, apages])
def test_a_generator_cannot_be_a_task(decorate: Decorator, func: Any) -> None:
    wanted = rf"cannot guard the generator .*pages \({HERE}:\d+\): .* Put `with lifeguard\.unit\(\)"
    with pytest.raises(TypeError, match=wanted):
        decorate(func)


def test_a_generator_cannot_be_a_task_of_an_app_with_install(app: Celery, guard: Lifeguard) -> None:
    """At once where the task is made at once, else with the first look at the app's tasks."""
    lifeguard.celery.install(app, guard=guard)
    with pytest.raises(TypeError, match=r"cannot guard the generator .*pages"):
        app.task(name="pages", lazy=False)(pages)


@pytest.mark.parametrize("func", [charge, acharge])
@pytest.mark.parametrize("inner", ["lifeguard.task", "lifeguard.celery.task"])
def test_a_function_is_decorated_twice(
    guard: Lifeguard, decorate: Decorator, func: Any, inner: str
) -> None:
    first: Any = guard.task if inner == "lifeguard.task" else lifeguard.celery.task(guard=guard)
    wanted = (
        rf"^@lifeguard\.task was applied to .*{func.__name__} \({HERE}:\d+\) twice: each call is a "
        r"unit already\. Take one of the two away$"
    )
    with pytest.raises(TypeError, match=wanted):
        decorate(first(func))


@pytest.mark.parametrize("thing", [5, "shop.tasks.charge"])
def test_only_functions_can_be_tasks(decorate: Decorator, thing: Any) -> None:
    with pytest.raises(TypeError, match=rf"@lifeguard\.task takes a function, not {thing!r}$"):
        decorate(thing)


def test_a_password_in_what_was_passed_is_not_shown(decorate: Decorator) -> None:
    with pytest.raises(TypeError) as caught:
        decorate("postgresql://app:s3cret@db/app")
    assert "s3cret" not in str(caught.value)


# -- install --------------------------------------------------------------------------------------


@pytest.mark.parametrize("thing", [None, "shop", 5, Celery, lifeguard, charge])
def test_install_takes_an_app(guard: Lifeguard, thing: Any) -> None:
    with pytest.raises(TypeError, match=r"^lifeguard\.celery\.install\(\) takes a Celery app, not"):
        lifeguard.celery.install(thing, guard=guard)


def test_a_guard_is_a_lifeguard(app: Celery) -> None:
    wanted = r"guard= takes a lifeguard\.Lifeguard, not "
    with pytest.raises(TypeError, match=wanted):
        lifeguard.celery.install(app, guard=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=wanted):
        lifeguard.celery.task(guard="guard")(charge)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("resources", "wanted"),
    [
        ("postgresql://db", r"resources= takes a list, not str: resources=\[pool\]"),
        (5, r"resources= takes a list, not int"),
        ([5], r"5 is not a resource: pass an object with open\(\) and close\(\), or a context"),
    ],
)
def test_install_says_what_a_resource_is(
    app: Celery, guard: Lifeguard, resources: Any, wanted: str
) -> None:
    with pytest.raises(TypeError, match=wanted):
        lifeguard.celery.install(app, guard=guard, resources=resources)


# -- where tasks are called -----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["eager", "inline"])
def test_an_async_task_would_block_a_running_loop(app: Celery, guard: Lifeguard, how: str) -> None:
    """In an async view, say. Its coroutine would wait for the thread that waits for it."""
    task = app.task(name="charge")(lifeguard.celery.task(guard=guard)(acharge))

    async def view() -> Any:
        return task.delay().get() if how == "eager" else task()

    wanted = (
        rf"acharge \({HERE}:\d+\) would block the event loop that runs in this thread: await the "
        r"async function itself, or send it to a worker"
    )
    with pytest.raises(LifeguardError, match=wanted):
        asyncio.run(view())


def test_an_async_resource_needs_a_loop(app: Celery, guard: Lifeguard) -> None:
    """A sync task that is called without a worker: there is no loop to open it on."""

    @guard.resource
    async def db() -> AsyncIterator[int]:
        yield 5

    task = app.task(name="charge")(guard.task(charge))
    with pytest.raises(TypeError, match=r"resource 'db' \(made at .*\) is async: open it where"):
        task.delay().get()


# -- workers --------------------------------------------------------------------------------------


@pytest.mark.celery
@pytest.mark.timeout(240)
def test_what_a_worker_finds_wrong(start: Workers) -> None:
    """An ``async def`` under the plain decorator, whose coroutine Celery would drop, fails with
    the name of the right one. A pool that lifeguard does not know is named in the log, and what
    tasks opened is closed all the same, at the end of the process."""
    own = {"CELERY_CUSTOM_WORKER_POOL": "tests.celery.apps.own_pool:TaskPool"}
    worker = start("mistakes", pool="custom", concurrency=1, env=own)
    answer = worker.run("forgotten")
    assert answer.state == "FAILURE"
    assert str(answer.result) == (
        "the task 'forgotten' is async, and Celery awaits nothing: decorate it with "
        "@lifeguard.celery.task instead of @lifeguard.task"
    )
    assert "was never awaited" not in worker.said()
    assert (
        "Celery's pool 'tests.celery.apps.own_pool' is not one that lifeguard knows (eventlet, "
        "gevent, prefork, solo, threads)"
    ) in worker.said()
    assert worker.run("right").result == 5
    assert worker.stop() == 0
    assert (worker.log.count("opened"), worker.log.count("closed")) == (1, 1)


@pytest.mark.celery
@pytest.mark.timeout(240)
def test_an_async_resource_under_greenlets(start: Workers) -> None:
    """There is no thread for its loop. Sync tasks fail with a word as well: the resource is one
    of the worker's."""
    worker = start("green", pool="gevent", env={"APP_ASYNC_RESOURCE": "1"})
    for task in ("ask", "ask_async"):
        answer = worker.run(task, 1)
        assert answer.state == "FAILURE"
        assert "async" in str(answer.result) and "gevent" in str(answer.result), answer
    worker.stop()
    assert worker.log.count("opened") == worker.log.count("closed")
