"""Small promises of the adapter that no whole request shows, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from lifeguard.testing import Postgres
from tests.django.databases import database
from tests.support.overlay import ROOT


def play(scene: str, pg: Postgres) -> Any:
    environ = {key: value for key, value in os.environ.items() if key != "PGAPPNAME"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.django.edges.program", scene],
        cwd=ROOT,
        env={**environ, "DATABASE": json.dumps(database(pg.dsn)), "WITNESS": pg.dsn},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_lane_that_waits_has_no_slot_of_the_pool(pg: Postgres) -> None:
    """Two lanes, a native pool of one: two open tabs have each had their row, and the slot is back
    while both are open. At the worker's end the pool is closed, and nothing is left."""
    assert play("pool of one", pg) == {
        "rows": [True, True],
        "available": 1,
        "closed": True,
        "left": 0,
    }


def test_a_receiver_that_raises_is_reported_and_stops_nobody(pg: Postgres) -> None:
    """Where lifeguard sends request_finished: the next receiver hears of it, the log of what the
    first one raised."""
    played = play("raising receiver", pg)
    assert played["told"] == ["listens"]
    assert len(played["said"]) == 1


def test_a_body_that_is_read_in_another_thread_leaves_nothing_there(pg: Postgres) -> None:
    """A WSGI stream with a query for each chunk: after each of them, the thread of the server's
    that ran it has no connection (CONN_MAX_AGE = 0)."""
    played = play("stream elsewhere", pg)
    assert played["queries"] == 3
    assert played["left"] == [0, 0, 0, 0]


def test_cleaning_a_lane_spares_a_transaction_unless_it_is_forced(pg: Postgres) -> None:
    """The connection of an open transaction is the same after a clean-up, and gone after one by
    force."""
    played = play("care", pg)
    assert played == {"held": "a transaction is open (atomic)", "goes on": True, "forced": True}
