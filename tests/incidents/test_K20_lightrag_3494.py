"""HKUDS/LightRAG#3494: the master is killed, and its workers serve on, for ever.

gunicorn's own workers look whether their parent is still there. uvicorn's do not: after a SIGKILL
of the master (an impatient operator, the OOM killer) they keep the port and their connections,
nobody restarts what crashes, and a new master cannot start.
"""

from __future__ import annotations

import os
import signal

import psutil

from lifeguard.testing import Postgres
from tests.incidents.serving import Process, Sides

UVICORN_WORKER = ["--worker-class", "uvicorn_worker.UvicornWorker"]


def test_incident_K20(sides: Sides, pg: Postgres, appname: str) -> None:
    """Bare, the worker answers as if nothing had happened.

    Guarded, with ``Lifeguard(die_with_parent=True)``, it shuts down in order, and lets go of the
    port and of its connections.
    """
    bare, guarded = sides.serve("gunicorn", "k20", *UVICORN_WORKER)
    orphan, ended = (lose_master(side) for side in (bare, guarded))

    guarded.wait_until_deaf()
    assert psutil.wait_procs([ended], timeout=40)[1] == [], guarded.said()
    assert guarded.log.count("shut down") == 1, guarded.said()

    assert bare.get("/").text == str(orphan.pid)
    assert pg.wait_count(2, prefix=appname) == 2
    os.kill(orphan.pid, signal.SIGTERM)
    assert pg.wait_count(0, prefix=appname) == 0


def lose_master(process: Process) -> psutil.Process:
    """Kill the master. Returns the worker that it leaves behind."""
    worker = psutil.Process(int(process.get("/").text))
    process.send(signal.SIGKILL)
    process.wait()
    return worker
