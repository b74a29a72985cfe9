"""readthedocs/readthedocs.org#13180: preloading needs ``connections.close_all()`` in a hook.

To save memory, gunicorn was to load the site before it forks its workers. What Django asks while it
is loaded leaves a connection, which every worker inherits, and uses. The hook that closes it was
questioned in review: nothing in the manuals says that it is needed.
"""

from __future__ import annotations

from tests.incidents.serving import Process, Sides

WORKERS = 2


def test_incident_F12(sides: Sides) -> None:
    """``gunicorn --preload``, two workers, no hook. Bare, both answer on the master's backend.

    Guarded, each has one of its own.
    """
    bare, guarded = sides.serve("gunicorn", "f12", "--preload", "--workers", str(WORKERS))

    backends = ask_all(bare)
    assert set(backends.values()) == {bare.get("/").json()["master"]}, bare.said()

    backends = ask_all(guarded)
    assert len(set(backends.values())) == WORKERS, guarded.said()
    assert guarded.get("/").json()["master"] not in backends.values()


def ask_all(process: Process) -> dict[int, int]:
    """Ask, one request after another, until each worker has answered; their backends."""
    backends: dict[int, int] = {}
    for _ in range(200):
        answer = process.get("/").json()
        backends[answer["worker"]] = answer["backend"]
        if len(backends) == WORKERS:
            return backends
    raise AssertionError(f"only {len(backends)} workers answer:\n{process.said()}")
