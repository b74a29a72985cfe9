"""readthedocs/readthedocs.org#13180: preloading needs ``connections.close_all()`` in a hook.

To save memory, gunicorn was to load the site before it forks its workers. What Django asks while it
is loaded leaves a connection, which every worker inherits, and uses. The hook that closes it was
questioned in review: nothing in the manuals says that it is needed.
"""

from __future__ import annotations

import os
import signal

from tests.incidents.serving import Process, Sides

WORKERS = 2


def test_incident_F12(sides: Sides) -> None:
    """``gunicorn --preload``, two workers, no hook. Bare, both answer on the master's backend.

    Guarded, each has one of its own.
    """
    bare, guarded = sides.serve("gunicorn", "f12", "--preload", "--workers", str(WORKERS))

    assert one_each(bare) == {bare.get("/").json()["master"]}, bare.said()

    backends = one_each(guarded)
    assert len(backends) == WORKERS, guarded.said()
    assert guarded.get("/").json()["master"] not in backends


def one_each(process: Process) -> set[int]:
    """The backends that the two workers ask, in turn."""
    first = process.get("/").json()
    os.kill(first["worker"], signal.SIGSTOP)  # so that the next request is the other's
    try:
        second = process.get("/").json()
    finally:
        os.kill(first["worker"], signal.SIGCONT)
    assert second["worker"] != first["worker"]
    return {first["backend"], second["backend"]}
