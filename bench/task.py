"""What ``lifeguard.task`` adds to a call of a synchronous function."""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable
from contextlib import ExitStack
from itertools import repeat
from time import perf_counter_ns

import lifeguard
from bench._measure import Plan, Run, Variant, interleave
from bench._report import Group
from bench._serve import in_contexts

__all__ = ["measure"]

BARE, GUARDED = "direct call", "lifeguard.task"


def charge(order: int) -> int:
    """A task's body that costs nothing, so that only the wrapper is seen."""
    return order


def passthrough(function: Callable[[int], int]) -> Callable[[int], int]:
    """The least a decorator can be that takes any function."""

    @functools.wraps(function)
    def call(*args: int, **kwargs: int) -> int:
        return function(*args, **kwargs)

    return call


def in_context_copy(function: Callable[[int], int]) -> Callable[[int], int]:
    def call(order: int) -> int:
        return contextvars.copy_context().run(function, order)

    return call


def undecorated(function: Callable[[int], int]) -> Callable[[int], int]:
    return function


def task(function: Callable[[int], int]) -> Callable[[int], int]:
    return lifeguard.task(function)


def call_variant(
    name: str, decorate: Callable[[Callable[[int], int]], Callable[[int], int]]
) -> Variant:
    """Calls one after the other in a context with 3 variables, as in a worker's thread."""

    def start(stack: ExitStack) -> Run:
        function = decorate(charge)

        def calls(count: int) -> int:
            start = perf_counter_ns()
            for _ in repeat(None, count):
                function(1)
            return perf_counter_ns() - start

        return in_contexts(3, calls)

    return Variant(name, start)


def measure(plan: Plan) -> Group:
    group = Group("task", "task: one call of a sync function; 3 other context variables", "ns")
    variants = [
        call_variant(BARE, undecorated),
        call_variant("pass-through decorator", passthrough),
        call_variant("copy_context().run", in_context_copy),
        call_variant(GUARDED, task),
    ]
    group.add(interleave(variants, rounds=plan.rounds, inner=2000), bare=BARE)
    group.target("task", "added to a direct call", group.added(GUARDED), 600, "ns")
    return group
