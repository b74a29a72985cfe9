"""``request_finished`` comes once, however a request ends, and as the last of it.

Django closes connections in that signal, clears its caches there, and so do many apps. The endings
are played by hand (``tests/django/finished``), in a process of its own for each Django, so that
each of them happens at the same point in every run. PostgreSQL is real; it tells the connections
apart. Each is played without lifeguard as well: which endings Django forgets is asserted, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from lifeguard.testing import Postgres
from tests.django.finished.table import ASGI, UNHEARD, WSGI, Ending
from tests.django.versions import HERE, OTHERS, python_path
from tests.support.overlay import ROOT

PLAY_WITHIN = 50.0
DJANGOS = [*OTHERS, HERE]


class Player:
    """Plays all endings once for each side, and remembers what came of them."""

    def __init__(self, pg: Postgres) -> None:
        self.pg = pg
        self.run = cache(self._run)

    def played(self, protocol: str, django: str, side: str) -> dict[str, Any]:
        done = self.run(protocol, django, side)
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        assert result["django"].startswith(django)
        return result["endings"]

    def _run(self, protocol: str, django: str, side: str) -> subprocess.CompletedProcess[str]:
        name = f"finished-{protocol}-{django}-{side}-{os.getpid()}"
        env = {
            **os.environ,
            "PYTHONPATH": python_path(django),
            "FINISHED_SIDE": side,
            "FINISHED_DSN": self.pg.named(name),
        }
        done = subprocess.run(
            [
                "timeout",
                str(PLAY_WITHIN),
                sys.executable,
                "-m",
                f"tests.django.finished.{protocol}",
            ],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        left = self.pg.wait_count(0, application_name=name)
        assert left == 0, f"{left} connections outlived the process"
        return done


@pytest.fixture(scope="module")
def player(pg: Postgres) -> Player:
    return Player(pg)


def expected(protocol: str, django: str) -> dict[str, Ending]:
    if protocol == "wsgi":
        return WSGI
    return ASGI | (UNHEARD if django.startswith("4.") else {})


def events(played: dict[str, Any]) -> list[str]:
    return [entry["event"] for entry in played["log"]]


@pytest.mark.parametrize("django", DJANGOS)
@pytest.mark.parametrize("protocol", ["asgi", "wsgi"])
def test_what_django_does_by_itself(player: Player, protocol: str, django: str) -> None:
    """Without lifeguard many endings finish nothing, and close nothing; one finishes twice."""
    seen = {}
    for name, played in player.played(protocol, django, "bare").items():
        counted = events(played)
        seen[name] = (counted.count("started"), counted.count("finished"), counted.count("close"))
    assert seen == {
        name: (ending.started, ending.finished, ending.closed)
        for name, ending in expected(protocol, django).items()
    }


@pytest.mark.parametrize("django", DJANGOS)
@pytest.mark.parametrize(
    ("protocol", "name"),
    [*(("asgi", name) for name in ASGI), *(("wsgi", name) for name in WSGI)],
)
def test_finished_once(player: Player, protocol: str, django: str, name: str) -> None:
    """Guarded, every request that started finishes once, all receivers hear of it, and its
    response is closed once. All of that comes after the last query, in the same thread, which has
    the same connection. The server notices nothing."""
    ending = expected(protocol, django)[name]
    played = player.played(protocol, django, "guarded")[name]
    bare = player.played(protocol, django, "bare")[name]
    log = played["log"]
    happened = events(played)

    assert happened.count("started") == ending.started
    assert happened.count("finished") == ending.started
    assert happened.count("finished, last receiver") == ending.started
    if ending.response:
        assert happened.count("close") == 1
        assert happened.count("closer") >= ending.closers
    else:
        assert "close" not in happened
    assert happened.count("closer") <= 1
    assert played["how"] == bare["how"]
    if "server cancels" not in name:  # Django 5 and 6.0 let a task go on, with no one to send to
        assert played["sent"] == bare["sent"]
    if "query" not in happened or not ending.started:
        return
    finished = happened.index("finished")
    last = max(
        index for index, event in enumerate(happened) if event in ("query", "end of the generator")
    )
    assert last < finished, happened
    if name == "stream read and closed in another thread":  # it has not the view's connection
        return
    query = [entry for entry in log if entry["event"] == "query"][-1]
    assert log[finished]["thread"] == query["thread"]
    assert log[finished]["backend"] == query["backend"]
