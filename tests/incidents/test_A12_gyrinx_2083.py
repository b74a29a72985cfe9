"""gyrinx-app/gyrinx#2083: CONN_MAX_AGE=60 under daphne fills the database with idle connections.

44 of the 50 connections that the database allowed were open, and 35 of them idle. Each request
runs in a thread of its own, which keeps its connection for the next request, and there is none.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from lifeguard.testing import Postgres
from tests.incidents.serving import Process, Sides

REQUESTS = 20
LANES = 4  # of apps/django_site.py


def test_incident_A12(sides: Sides, pg: Postgres, appname: str) -> None:
    """Bare, every request opens a connection, which stays until the garbage collector finds it.

    Guarded, twenty requests share four.
    """
    bare, guarded = sides.serve("daphne", "a12")

    assert len(backends(bare)) == REQUESTS
    assert pg.count(f"{appname}bare") == REQUESTS
    assert len(backends(guarded)) <= LANES
    assert pg.count(f"{appname}guarded") <= LANES


def backends(side: Process) -> set[str]:
    """The connections that answered."""
    with ThreadPoolExecutor(LANES) as clients:
        return {answer.text for answer in clients.map(side.get, ["/"] * REQUESTS)}
