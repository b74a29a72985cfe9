"""What lifeguard adds to borrowing a connection and returning it, on a real PostgreSQL.

A bare pool and adopted ones of the same size, each in a process of its own, take turns. Nothing is
asked of the database in between: a query would only hide what is measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, ExitStack
from itertools import repeat
from time import perf_counter_ns
from typing import Any

from psycopg_pool import AsyncConnectionPool, ConnectionPool

import lifeguard
from bench._measure import Plan, Run, Variant, interleave
from bench._report import Group, divide
from bench._serve import context_with
from lifeguard.testing import postgres

__all__ = ["measure"]

SIZE = 2
BARE, OUTSIDE, INSIDE = "bare", "adopted, outside a unit", "adopted, inside a unit"
CONNECTION, BY_HAND = "connection()", "getconn() + putconn()"
LIMITS = {OUTSIDE: 1.05, INSIDE: 1.15}


def borrow(pool: ConnectionPool[Any], count: int) -> int:
    start = perf_counter_ns()
    for _ in repeat(None, count):
        with pool.connection():
            pass
    return perf_counter_ns() - start


def borrow_by_hand(pool: ConnectionPool[Any], count: int) -> int:
    start = perf_counter_ns()
    for _ in repeat(None, count):
        pool.putconn(pool.getconn())
    return perf_counter_ns() - start


async def aborrow(pool: AsyncConnectionPool[Any], count: int) -> int:
    start = perf_counter_ns()
    for _ in repeat(None, count):
        async with pool.connection():
            pass
    return perf_counter_ns() - start


async def aborrow_by_hand(pool: AsyncConnectionPool[Any], count: int) -> int:
    start = perf_counter_ns()
    for _ in repeat(None, count):
        await pool.putconn(await pool.getconn())
    return perf_counter_ns() - start


def sync_variant(
    dsn: str, way: str, where: str, timer: Callable[[ConnectionPool[Any], int], int]
) -> Variant:
    def start(stack: ExitStack) -> Run:
        pool = ConnectionPool(dsn, min_size=SIZE, max_size=SIZE, open=False)
        guard = lifeguard.Lifeguard()
        if where == BARE:
            stack.enter_context(pool)
        else:
            stack.enter_context(guard.worker(resources=[pool]))
        pool.wait()
        context = context_with(3)

        def inside(count: int) -> int:
            with guard.unit():
                return timer(pool, count)

        def outside(count: int) -> int:
            return timer(pool, count)

        run = inside if where == INSIDE else outside
        return lambda count: context.run(run, count)

    return Variant(f"ConnectionPool.{way}, {where}", start)


def async_variant(
    dsn: str,
    way: str,
    where: str,
    timer: Callable[[AsyncConnectionPool[Any], int], Coroutine[Any, Any, int]],
) -> Variant:
    def start(stack: ExitStack) -> Run:
        pool = AsyncConnectionPool(dsn, min_size=SIZE, max_size=SIZE, open=False)
        guard = lifeguard.Lifeguard()
        runner = stack.enter_context(asyncio.Runner())
        astack = AsyncExitStack()
        stack.callback(lambda: runner.run(astack.aclose()))
        context = context_with(3)

        async def open_pool() -> None:
            manager = pool if where == BARE else guard.worker(resources=[pool])
            await astack.enter_async_context(manager)
            await pool.wait()

        async def inside(count: int) -> int:
            async with guard.unit():
                return await timer(pool, count)

        async def outside(count: int) -> int:
            return await timer(pool, count)

        runner.run(open_pool())
        run = inside if where == INSIDE else outside
        return lambda count: runner.run(run(count), context=context)

    return Variant(f"AsyncConnectionPool.{way}, {where}", start)


def measure(plan: Plan) -> Group:
    group = Group("pool", "pool: one borrow and return, nothing asked", "ns")
    places = (BARE, OUTSIDE, INSIDE)
    with postgres() as server:
        for way, timer in ((CONNECTION, borrow), (BY_HAND, borrow_by_hand)):
            compare(group, [sync_variant(server.dsn, way, where, timer) for where in places], plan)
        for way, atimer in ((CONNECTION, aborrow), (BY_HAND, aborrow_by_hand)):
            compare(
                group, [async_variant(server.dsn, way, where, atimer) for where in places], plan
            )
    return group


def compare(group: Group, variants: list[Variant], plan: Plan) -> None:
    """Interleave one way to borrow. The limits are for ``connection()``: people write that."""
    samples = interleave(variants, rounds=plan.rounds, inner=200)
    bare, *others = samples
    group.add(samples, bare=bare)
    for name in others:
        pool, _, where = name.partition(", ")
        if pool.endswith(CONNECTION):
            ratio = divide(samples[name].minimum, samples[bare].minimum)
            group.target(name, "adopted / bare", ratio, LIMITS[where])
