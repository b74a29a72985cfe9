"""Each way to run code in a thread, with each kind of connection: what is left after the jobs.

The garbage collector is off in the programs, and the threads are alive when PostgreSQL is asked.
Every fourth job fails (bare, where there is a pool, each does). ``python -m tests.threads.table``
prints what came of it, cell by cell.
"""

from __future__ import annotations

import pytest

from tests.threads.columns import Columns, ways_of
from tests.threads.kinds import KINDS, POOL, DjangoAge60
from tests.threads.ways import THREADS_END

PROCESSES = "APScheduler 3, processes"
CELLS = [(kind, way) for kind in KINDS for way in ways_of(kind)]


@pytest.mark.parametrize(("kind", "way"), CELLS)
def test_nothing_is_left_after_a_job(table: Columns, kind: str, way: str) -> None:
    """Bare, each thread keeps a connection of Django's, and jobs that fail empty the pool.

    Guarded, all jobs are served, 200 of them from 16 threads by a pool of four: each connection is
    closed, back, or as young as CONN_MAX_AGE allows, and none is left when the threads have ended.
    """
    bare, guarded = table.both(kind, way)
    jobs = KINDS[kind].jobs

    if KINDS[kind].pooled:
        assert bare["lost"] == POOL
        assert {*bare["outcomes"]} - {"done", "JobFailed"}, "everybody had a connection in time"
        assert guarded["lost"] == 0
    else:
        assert bare["left"] == bare["backends"]
        if way != PROCESSES:  # where one of them may do all the jobs
            assert bare["left"] >= bare["threads"]
            assert bare["after"] == bare["left"], "the garbage collector came"
        expected = guarded["backends"] if kind == DjangoAge60.name else 0
        assert guarded["left"] == (0 if way in THREADS_END else expected)
    if kind == DjangoAge60.name and way not in THREADS_END:
        assert bare["aged"] == bare["left"]
        assert guarded["backends"] < jobs / 2, "connections that are young are not used again"
        assert guarded["aged"] <= guarded["backends"] - guarded["threads"]

    again = guarded["threads"] if "aged" in guarded else 0
    failed = (jobs + 3) // 4 + (again + 3) // 4
    assert guarded["outcomes"] == {"done": jobs + again - failed, "JobFailed": failed}
    assert guarded["after"] == 0
