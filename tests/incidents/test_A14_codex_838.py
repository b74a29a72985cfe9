"""ajslater/codex#838: each request under ASGI leaves a database open, and be it SQLite.

A page of covers left dozens of file descriptors behind, and the limit of the process was raised for
them. A request runs in a thread of its own, which keeps its connection for the next request, and
there is none.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psutil

from tests.incidents.serving import Process, Sides

COVERS = 20
LANES = 4  # of apps/django_site.py


def test_incident_A14(sides: Sides) -> None:
    """Bare, with CONN_MAX_AGE=600, the file is open as many times as there were requests.

    Guarded, it is open once for each lane.
    """
    bare, guarded = sides.serve("uvicorn", "a14")

    for side in (bare, guarded):
        with ThreadPoolExecutor(LANES) as clients:
            answers = list(clients.map(side.get, ["/"] * COVERS))
        assert [answer.text for answer in answers] == ["a cover"] * COVERS, side.said()
    assert times_open(bare) == COVERS
    assert 1 <= times_open(guarded) <= LANES


def times_open(side: Process) -> int:
    files = [file.path for file in psutil.Process(side.pid).open_files()]
    return files.count(str(side.log.path.with_suffix(".sqlite")))
