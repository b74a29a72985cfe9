"""A short storm, with lifeguard and without. ``make storm`` is the long one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lifeguard.testing import Postgres, postgres
from tests.storm.__main__ import SETTINGS, storm

pytestmark = [pytest.mark.storm, pytest.mark.timeout(240)]
SEED = 20


@pytest.fixture(scope="module")
def logging_pg() -> Iterator[Postgres]:
    with postgres(settings=SETTINGS) as pg:
        yield pg


def test_storm(logging_pg: Postgres) -> None:
    """Workers end in every way, under load: nothing is lost but what was killed."""
    verdicts = storm(logging_pg, ends=24, seed=SEED, limit=180)
    assert [line for verdict in verdicts for line in verdict.violations] == []
    assert sum(verdict.answered for verdict in verdicts) > 100


def test_bare_storm(logging_pg: Postgres) -> None:
    """The same without lifeguard: pools stay open where ``atexit`` is not reached."""
    verdicts = storm(logging_pg, ends=18, seed=SEED, limit=180, bare=True)
    assert any("closed its pool never" in line for v in verdicts for line in v.violations)
