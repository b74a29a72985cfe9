"""What lifeguard adds to a task of Celery, and what an async task costs on one loop per process.

Tasks are executed as a worker's child executes them, by Celery's own tracer, but in this process:
a broker and the way to it take a hundred times as long as what is compared here. The tracer's
signals are sent, so Celery's Django fixup does what it does around each task.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack
from functools import partial
from itertools import repeat
from time import perf_counter_ns
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool, ConnectionPool

import lifeguard
from bench._measure import Plan, Run, Sample, Variant, interleave
from bench._report import Group, divide
from bench._serve import in_contexts
from lifeguard.testing import postgres

__all__ = ["measure"]

TRACER, PASSED, GUARDED = "tracer", "tracer, pass-through decorator", "tracer, lifeguard.task"
INSTALLED = "tracer, lifeguard.celery.install"
RUN, ON_LOOP = "asyncio.run", "lifeguard.celery.task"
CONNECT, POOL = "asyncio.run + connect, SELECT", "lifeguard.celery.task, SELECT"
ONE_LOOP, SYNC_POOL = "a loop that stays, SELECT", "sync pool, SELECT"
SELECT = "SELECT 1"
MIN_SIZE, MAX_SIZE = 2, 4

Order = Callable[[int], Any]


def measure(plan: Plan) -> Group:
    for name in ("celery.app.trace", "django", "lifeguard.celery"):
        importlib.import_module(name)  # before the processes are forked: once for all of them
    group = Group("celery", "Celery: one task, in a process like a worker's child", "us")
    sync_tasks(group, plan)
    async_tasks(group, plan)
    with postgres() as server:
        ways = {"tcp": server.dsn}
        if server.socket_dsn is not None:
            ways["unix"] = server.socket_dsn
        for way, dsn in ways.items():
            queries(group, plan, way, dsn)
            django_tasks(group, plan, way, dsn)
    return group


def in_us(samples: dict[str, Sample]) -> dict[str, Sample]:
    return {name: Sample([ns / 1e3 for ns in each.values]) for name, each in samples.items()}


# -- a sync task ----------------------------------------------------------------------------------


def sync_tasks(group: Group, plan: Plan) -> None:
    variants = [
        traced(TRACER, lambda guard, app: app.task(charge)),
        traced(PASSED, lambda guard, app: app.task(passthrough(charge))),
        traced(GUARDED, lambda guard, app: app.task(guard.task(charge))),
        traced(INSTALLED, installed),
    ]
    group.add(in_us(interleave(variants, rounds=plan.rounds, inner=200)), bare=TRACER)
    for name in (GUARDED, INSTALLED):
        group.target(name, "added to Celery's own tracer", group.added(name), 2, "us")


def charge(order: int) -> int:
    """A task's body that costs nothing, so that only what is around it is seen."""
    return order


def passthrough(function: Callable[[int], int]) -> Callable[[int], int]:
    def call(order: int) -> int:
        return function(order)

    return call


def installed(guard: lifeguard.Lifeguard, app: Any) -> Any:
    import lifeguard.celery

    lifeguard.celery.install(app, guard=guard)
    return app.task(charge)


def traced(name: str, make: Callable[[lifeguard.Lifeguard, Any], Any]) -> Variant:
    """The task that *make* makes, traced again and again in a context with 3 variables."""

    def start(stack: ExitStack) -> Run:
        app = celery_app(name)
        guard = lifeguard.Lifeguard()
        execute = tracer(app, make(guard, app))
        stack.callback(close, guard)
        return in_contexts(3, partial(calls, execute))

    return Variant(name, start)


def close(guard: lifeguard.Lifeguard) -> None:
    """As at the end of a worker: what the tasks of this process had opened closes."""
    from lifeguard._loop import end_worker

    end_worker(guard)


def celery_app(name: str) -> Any:
    from celery import Celery

    app = Celery(name, broker="memory://", set_as_current=False)
    app.conf.update(task_ignore_result=True, worker_hijack_root_logger=False)
    return app


def tracer(app: Any, task: Any) -> Order:
    """What a worker's child calls for each message, with a worker that knows it is prefork."""
    from celery.app import trace

    trace.setup_worker_optimizations(app)
    app.finalize()
    app.WorkController(app=app, pool_cls="prefork", concurrency=1)  # made, and never started
    execute = trace.build_tracer(task.name, app.tasks[task.name], app=app)

    def call(order: int) -> None:
        result = execute("an-id", (order,), {}, {})
        if result.retval is not None and not isinstance(result.retval, int):
            raise RuntimeError(f"the task ended with {result.retval!r}")

    return call


def calls(order: Order, count: int) -> int:
    start = perf_counter_ns()
    for _ in repeat(None, count):
        order(1)
    return perf_counter_ns() - start


# -- an async task --------------------------------------------------------------------------------


async def nothing(order: int) -> int:
    return order


def run_each(function: Callable[[int], Coroutine[Any, Any, Any]], order: int) -> Any:
    return asyncio.run(function(order))


def async_tasks(group: Group, plan: Plan) -> None:
    """The call of the function alone: the tracer comes on top of each, and is the same."""

    def bare(stack: ExitStack) -> Run:
        return partial(calls, partial(run_each, nothing))

    def guarded(stack: ExitStack) -> Run:
        return partial(calls, on_loop(stack, lifeguard.Lifeguard(), nothing))

    variants = [Variant(f"{RUN}, no-op", bare), Variant(f"{ON_LOOP}, no-op", guarded)]
    samples = in_us(interleave(variants, rounds=max(1, plan.rounds // 4), inner=200))
    group.add(samples)
    group.target(f"{ON_LOOP}, no-op", "a call", samples[f"{ON_LOOP}, no-op"].minimum, 60, "us")


def on_loop(
    stack: ExitStack,
    guard: lifeguard.Lifeguard,
    function: Callable[[int], Coroutine[Any, Any, Any]],
) -> Order:
    import lifeguard.celery

    stack.callback(close, guard)
    order: Order = lifeguard.celery.task(guard=guard)(function)
    return order


def queries(group: Group, plan: Plan, way: str, dsn: str) -> None:
    """One SELECT in each task."""

    def connecting(stack: ExitStack) -> Run:
        async def task(order: int) -> None:
            async with await psycopg.AsyncConnection.connect(dsn) as conn:
                await conn.execute(SELECT)

        return partial(calls, partial(run_each, task))

    def guarded(stack: ExitStack) -> Run:
        guard = lifeguard.Lifeguard()

        @guard.resource
        async def db() -> AsyncIterator[AsyncConnectionPool]:
            async with AsyncConnectionPool(dsn, open=False, min_size=1, max_size=1) as pool:
                yield pool

        async def task(order: int) -> None:
            async with db.get().connection() as conn:
                await conn.execute(SELECT)

        from lifeguard._loop import begin_worker

        begin_worker(guard)
        return partial(calls, on_loop(stack, guard, task))

    def staying(stack: ExitStack) -> Run:
        """No thread, no unit: what the driver and the loop cost by themselves."""
        runner = stack.enter_context(asyncio.Runner())
        pool = AsyncConnectionPool(dsn, open=False, min_size=1, max_size=1)
        runner.run(pool.open(wait=True))
        stack.callback(lambda: runner.run(pool.close()))

        async def task(order: int) -> None:
            async with pool.connection() as conn:
                await conn.execute(SELECT)

        return partial(calls, lambda order: runner.run(task(order)))

    def sync(stack: ExitStack) -> Run:
        pool = stack.enter_context(ConnectionPool(dsn, open=False, min_size=1, max_size=1))

        def task(order: int) -> None:
            with pool.connection() as conn:
                conn.execute(SELECT)

        return partial(calls, task)

    def named(name: str) -> str:
        return f"{way}: {name}"

    starts = {CONNECT: connecting, POOL: guarded, ONE_LOOP: staying, SYNC_POOL: sync}
    variants = [Variant(named(name), start) for name, start in starts.items()]
    samples = in_us(interleave(variants, rounds=max(1, plan.rounds // 2), inner=3))
    group.add(samples)
    ours = samples[named(POOL)].minimum
    group.target(named(POOL), "a call", ours, 250, "us")
    ratio = divide(ours, samples[named(CONNECT)].minimum)
    group.target(named(POOL), "/ asyncio.run + connect", ratio, 0.1 if way == "tcp" else 0.25)
    ratio = divide(ours, samples[named(ONE_LOOP)].minimum)
    group.target(named(POOL), "/ a loop that stays", ratio, 1.5)


# -- Django's connections around a task -----------------------------------------------------------


def django_tasks(group: Group, plan: Plan, way: str, dsn: str) -> None:
    """The ORM's connection in a prefork child, as Celery's fixup and as lifeguard treats it."""
    native = {"OPTIONS": {"pool": {"min_size": MIN_SIZE, "max_size": MAX_SIZE}}}
    kinds: dict[str, dict[str, Any]] = {"native pool": native, "CONN_MAX_AGE": {"CONN_MAX_AGE": 60}}
    for kind, database in kinds.items():
        bare, ours = f"{way}: Django, {kind}, bare", f"{way}: Django, {kind}, guarded"
        variants = [
            Variant(bare, partial(django_task, dsn, database, guarded=False)),
            Variant(ours, partial(django_task, dsn, database, guarded=True)),
        ]
        samples = in_us(
            interleave(variants, rounds=max(1, plan.rounds // 20), inner=2 if plan.quick else 10)
        )
        group.add(samples)
        ratio = divide(samples[ours].minimum, samples[bare].minimum)
        group.target(ours, "/ bare", ratio, 0.2 if way == "tcp" else 0.4)


def django_task(dsn: str, database: dict[str, Any], stack: ExitStack, *, guarded: bool) -> Run:
    import django
    from django.conf import settings

    login: dict[str, Any] = dict(conninfo_to_dict(dsn))
    settings.configure(
        INSTALLED_APPS=["lifeguard.django"] if guarded else [],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": login.pop("dbname"),
                **database,
                "OPTIONS": {**login, **database.get("OPTIONS", {})},
            }
        },
    )
    os.environ["DJANGO_SETTINGS_MODULE"] = __name__  # this is how Celery knows Django
    django.setup()
    from django.db import connection

    app = celery_app("django")

    def task(order: int) -> None:
        with connection.cursor() as cursor:
            cursor.execute(SELECT)

    made = app.task(lifeguard.task(task) if guarded else task)
    if guarded:
        stack.callback(close, lifeguard._default)
    return partial(calls, tracer(app, made))
