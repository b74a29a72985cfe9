"""Fixtures of the tests of the core: an event log, and guards that are ended again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import lifeguard
from tests.core.helpers import BACKENDS


@pytest.fixture
def log() -> list[str]:
    """One ordered log. Every actor appends to it, and the assertion compares the whole of it."""
    return []


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each kind of event loop."""
    return str(request.param)


@pytest.fixture
def make_guard() -> Iterator[Callable[..., lifeguard.Lifeguard]]:
    """Makes guards that share nothing with others. Their workers are ended with the test."""
    made: list[lifeguard.Lifeguard] = []

    def make(**options: Any) -> lifeguard.Lifeguard:
        guard = lifeguard.Lifeguard(**{"grace": 5.0, "handle_sigterm": False, **options})
        made.append(guard)
        return guard

    yield make
    for guard in made:
        guard._worker.end()


@pytest.fixture
def guard(make_guard: Callable[..., lifeguard.Lifeguard]) -> lifeguard.Lifeguard:
    return make_guard()
