"""Single jobs in threads, with each kind of connection: when it is back, and whose it is."""

from __future__ import annotations

import pytest

from tests.threads.columns import Columns
from tests.threads.jobs import JOBS, LEFT_TO_THE_COLLECTOR, THREADS
from tests.threads.kinds import KINDS, Django, DjangoAge0, DjangoAge60

#: Those whose connection is back with the job, and does not wait for its age.
ENDS_WITH_THE_JOB = [kind for kind in KINDS if kind != DjangoAge60.name]

DJANGO = [name for name, kind in KINDS.items() if issubclass(kind, Django)]


def moments(kind: str) -> list[str]:
    return [*JOBS] if kind in ENDS_WITH_THE_JOB else ["inline"]


@pytest.mark.parametrize("kind", ENDS_WITH_THE_JOB)
def test_a_job_that_was_given_up_cleans_up_at_its_real_end(table: Columns, kind: str) -> None:
    """``wait_for(asyncio.to_thread(job), ...)``: who waited goes on, the job keeps its connection
    for as long as it runs, and no longer. Bare, it is never back."""
    bare, guarded = table.both(kind, "given up", moments(kind))
    assert bare["given_up"] and guarded["given_up"]
    assert (bare["during"], bare["later"]) == (1, 1)
    assert (guarded["during"], guarded["later"]) == (1, 0)


@pytest.mark.parametrize("kind", ENDS_WITH_THE_JOB)
def test_a_done_callback_finds_the_connection_back(table: Columns, kind: str) -> None:
    """It runs in the job's thread, and the job has cleaned up before its future is done."""
    bare, guarded = table.both(kind, "done callback", moments(kind))
    assert bare["own_thread"] and guarded["own_thread"]
    assert (bare["seen"], guarded["seen"]) == (1, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_is_called_in_a_transaction_leaves_it_alone(table: Columns, kind: str) -> None:
    """A ``lifeguard.task`` as the last thing in its caller's transaction: what both have written is
    there, in a unit of the caller's and without one.

    The usual clean-up for threads, ``connections.close_all()`` at the end of the job, loses both
    rows of Django, without an exception.
    """
    bare, guarded = table.both(kind, "inline", moments(kind))
    assert bare["alone"] == (0 if kind in DJANGO else 2)
    assert (guarded["alone"], guarded["in_a_unit"]) == (2, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_is_called_in_a_unit_leaves_its_connection_to_it(
    table: Columns, kind: str
) -> None:
    """Django's connection stays until the outer unit ends; a pool has back what each borrowed."""
    _, guarded = table.both(kind, "inline", moments(kind))
    assert guarded["out"] == KINDS[kind].kept_by_a_unit


@pytest.mark.parametrize("moment", LEFT_TO_THE_COLLECTOR)
def test_nothing_is_left_to_the_garbage_collector(table: Columns, moment: str) -> None:
    """Twenty threads have asked the database. Bare, twenty connections stay when they have ended,
    until the garbage collector comes; and after that, too, where the program keeps an exception, a
    future, a cursor or an executor. Guarded, none stays, whatever is kept."""
    bare, guarded = table.both(DjangoAge0.name, moment, [*LEFT_TO_THE_COLLECTOR])
    collected = 0 if moment == "thread that ended" else THREADS
    assert (bare["right_after"], bare["collected"]) == (THREADS, collected)
    assert (guarded["right_after"], guarded["collected"]) == (0, 0)
