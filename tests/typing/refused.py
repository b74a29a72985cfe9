"""What must not type-check: each line marked with ``# wrong`` is an error, and no other line is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import lifeguard


@lifeguard.resource
def number() -> Iterator[int]:
    yield 1


@lifeguard.resource  # wrong
def returns() -> int:
    return 1


@lifeguard.resource  # wrong
async def awaits() -> int:
    return 1


@lifeguard.resource  # wrong
def takes(argument: int) -> Iterator[int]:
    yield 1


@lifeguard.task
def charge(order: int, *, twice: bool = False) -> str:
    return ""


@lifeguard.lifespan  # wrong
async def lifespan(app: object) -> None: ...


@lifeguard.lifespan(mounts=3)  # wrong
async def mounted(app: object) -> AsyncIterator[None]:
    yield


def flush(path: str, *, fast: bool) -> None: ...


text: str = number.get()  # wrong
charge("1")  # wrong
charge(1, thrice=True)  # wrong
count: int = charge(1)  # wrong
lifeguard.callback(flush)  # wrong
lifeguard.callback(flush, 1, fast=True)  # wrong
lifeguard.callback(flush, "path", fast=True)
lifeguard.callback(None)  # wrong
lifeguard.wrap(None)  # wrong
lifeguard.wrap(print, resources=3)  # wrong
lifeguard.Lifeguard(10)  # wrong
lifeguard.Lifeguard(grace="10")  # wrong
lifeguard.Lifeguard(gracious=10)  # wrong
lifeguard.unit(3)  # wrong
nothing = lifeguard.nothing  # wrong
