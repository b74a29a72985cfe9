"""Interleaved timing: the only part that starts a process or keeps a figure.

Two things make figures from one machine lie. Noise comes in waves of seconds, so variants timed one
after the other are compared across different weather; here every round times every variant for some
milliseconds, in turn, and the minimum over many rounds is kept, for noise only ever adds. And the
interpreter specialises code by what it meets there, so variants that share code (one middleware
around two apps) slow each other down, as they never would in production; here each variant lives in
a process of its own.
"""

from __future__ import annotations

import gc
import multiprocessing
import statistics
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TypeAlias

__all__ = ["Plan", "Run", "Sample", "Variant", "interleave"]

Run: TypeAlias = Callable[[int], int]
"""Does one thing so many times, and returns what that took altogether: nanoseconds, or bytes."""


@dataclass(frozen=True)
class Plan:
    """How much to measure. Groups scale their own repetitions from ``rounds``."""

    rounds: int = 200
    quick: bool = False


@dataclass(frozen=True)
class Variant:
    """One of the things compared.

    ``prepare`` is called in the variant's own process, and may leave things on the stack to be
    closed at its end.
    """

    name: str
    prepare: Callable[[ExitStack], Run]


@dataclass
class Sample:
    """What one variant took for one operation, in every round."""

    values: list[float] = field(default_factory=list)

    @property
    def minimum(self) -> float:
        return min(self.values)

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def interleave(variants: Sequence[Variant], *, rounds: int, inner: int) -> dict[str, Sample]:
    """Time all ``variants`` in turn, ``rounds`` times, ``inner`` operations each."""
    samples = {variant.name: Sample() for variant in variants}
    if len(samples) != len(variants):
        raise ValueError("two variants bear the same name")
    with ExitStack() as stack:
        ask = {v.name: stack.enter_context(process_of(v, inner)) for v in variants}
        for _ in range(max(1, rounds)):
            for name, sample in samples.items():
                sample.values.append(ask[name]() / inner)
    return samples


@contextmanager
def process_of(variant: Variant, inner: int) -> Iterator[Callable[[], int]]:
    """A process that has ``variant`` ready. Calling what this gives makes it run once.

    Forked, not spawned: all start from the same memory layout and the same hash seed.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(variant, inner, there, here), name=variant.name)
    process.start()
    there.close()

    def answer() -> int:
        try:
            figure = here.recv()
        except EOFError:
            raise RuntimeError(f"the process measuring {variant.name!r} died") from None
        if isinstance(figure, str):
            raise RuntimeError(f"measuring {variant.name!r} failed:\n{figure}")
        assert isinstance(figure, int)
        return figure

    def ask() -> int:
        here.send(True)
        return answer()

    try:
        answer()  # it has warmed up
        yield ask
    finally:
        here.close()
        process.join()


def serve(variant: Variant, inner: int, asked: Connection, asking: Connection) -> None:
    """The life of a variant's process: prepare, warm up, give a figure whenever asked."""
    # The parent's end of the pipe came along with the fork, and while it is open here, nobody sees
    # the parent close its own. (The ends of those forked before came along, too: hence processes
    # end in reverse order, the last one first.)
    asking.close()
    try:
        with ExitStack() as stack:
            run = variant.prepare(stack)
            # Long enough for the interpreter to have specialised every path.
            for _ in range(5):
                run(inner)
            gc.collect()
            gc.freeze()  # what is alive now stays: later collections need not look at it
            gc.disable()
            asked.send(0)
            while True:
                try:
                    asked.recv()
                except EOFError:
                    return
                gc.collect()
                run(max(1, inner // 10))  # another process had the caches in the meantime
                asked.send(run(inner))
    except Exception:
        asked.send(traceback.format_exc())
