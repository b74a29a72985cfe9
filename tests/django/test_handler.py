"""Django's ASGI handler keeps its promises when it is wrapped.

The ideas are those of Django's own tests of it: requests and responses arrive complete, streams
arrive as they are made, a disconnect reaches the view, a request has one thread, and several run
beside each other. They are asked of the bare app, too: a promise that Django does not give would
be none to keep. In a process of its own, because Django is set up once in each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache

import pytest

from lifeguard.testing import Postgres
from tests.django.finished.table import HANDLER
from tests.support.overlay import ROOT

ASK_WITHIN = 50


class Asked:
    """Asks each side everything at once, and remembers the answers."""

    def __init__(self, pg: Postgres) -> None:
        self.pg = pg
        self.answers = cache(self._answers)

    def _answers(self, side: str) -> dict[str, str | None] | str:
        name = f"handler-{side}-{os.getpid()}"
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "FINISHED_SIDE": side,
            "FINISHED_DSN": self.pg.named(name),
        }
        ask = [sys.executable, "-m", "tests.django.finished.handler"]
        done = subprocess.run(
            ["timeout", str(ASK_WITHIN), *ask],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert self.pg.wait_count(0, application_name=name) == 0
        return done.stderr if done.returncode else json.loads(done.stdout)


@pytest.fixture(scope="module")
def asked(pg: Postgres) -> Asked:
    return Asked(pg)


@pytest.mark.parametrize("promise", HANDLER)
@pytest.mark.parametrize("side", ["bare", "guarded"])
def test_handler(asked: Asked, side: str, promise: str) -> None:
    """The same for the client and for the view, with lifeguard and without."""
    answers = asked.answers(side)
    assert isinstance(answers, dict), answers
    assert set(answers) == set(HANDLER)
    assert answers[promise] is None, answers[promise]
