"""How many connections 120 tasks open: each pool of Celery, each place people keep connections in.

One worker goes through the whole row, column by column, as the columns have application_names of
their own. Each task asks PostgreSQL for its own number, so that another task's row is seen.

The bare cells say what is wrong there without lifeguard: they are what was measured with Celery
5.7 (and 5.6), Django 5.2 and 6.1.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.celery.worker import POOLS, CeleryWorker, Workers

pytestmark = pytest.mark.timeout(120)

TASKS = 120
CHILDREN = 4
MIN_SIZE, MAX_SIZE = 2, 4
COLUMNS = ("default", "kept", "pooled", "import", "lazy", "init")
"""Django with CONN_MAX_AGE=0, with 60, with its native pool; a psycopg_pool that is opened at
import, in the child when it is first needed, in ``worker_process_init``."""

SMOKE = ("prefork", "threads", "solo")
"""A few cells of these run in each run of the tests; the whole table is `make celery`."""


@dataclass
class Cell:
    """What 120 tasks did in one column."""

    right: int
    wrong: int
    failed: list[Any]
    never: int
    opened: int
    idle: int
    """Connections there are while no task runs."""
    took: float
    """Seconds of the median task."""


@dataclass
class Row:
    """One worker, from its start to its end."""

    cells: dict[str, Cell]
    status: int
    left: int
    unclean: list[str]
    inits: int
    said: str


def fill(worker: CeleryWorker, column: str, *, tasks: int = TASKS, within: float = 30.0) -> Cell:
    sent = worker.send_all("ask", [(column, number) for number in range(tasks)])
    answers = worker.gather(sent, within=within)
    ok = [(number, answer.result) for number, answer in enumerate(answers) if answer.ok]
    return Cell(
        right=sum(number == result[0] for number, result in ok),
        wrong=sum(number != result[0] for number, result in ok),
        failed=[answer.result for answer in answers if answer.state == "FAILURE"],
        never=sum(answer.state == "PENDING" for answer in answers),
        opened=worker.opened()[column],
        idle=settled(worker, column),
        took=statistics.median(result[3] for _, result in ok) if ok else 0.0,
    )


def settled(worker: CeleryWorker, column: str) -> int:
    """How many connections are idle: a backend leaves a moment after its client."""
    deadline = time.monotonic() + 2
    while (count := worker.idle(column)) > bound(worker.pool, column) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.02)
    return count


def bound(pool: str, column: str) -> int:
    """How many connections may stay."""
    children = CHILDREN if pool == "prefork" else 1
    threads = 1 if pool == "solo" else CHILDREN
    if column == "default":
        return 0
    if column == "kept":
        return threads
    if column == "import" and pool == "prefork":
        return children * MAX_SIZE + MIN_SIZE  # those of the parent, which opened it
    return children * MAX_SIZE


def run(worker: CeleryWorker, columns: tuple[str, ...], **options: Any) -> Row:
    try:
        cells = {column: fill(worker, column, **options) for column in columns}
        status = worker.stop()
        left = worker.left()
    finally:
        worker.kill()
    for column, cell in cells.items():
        print(f"{worker.pool} {column}: {cell}")
    return Row(cells, status, left, worker.unclean(), worker.log.count("init"), worker.said())


# -- guarded --------------------------------------------------------------------------------------

Rows = Callable[[str], Row]


@pytest.fixture(scope="module")
def guarded(start_shared: Workers) -> Rows:
    """``guarded(pool)``: a worker with lifeguard, which has gone through all columns and ended."""
    rows: dict[str, Row] = {}

    def row(pool: str) -> Row:
        if pool not in rows:
            worker = start_shared("connections", pool=pool, env={"APP_IMPORT": "1"})
            rows[pool] = run(worker, COLUMNS)
        return rows[pool]

    return row


@pytest.mark.celery
@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("pool", POOLS)
def test_guarded(pool: str, column: str, guarded: Rows) -> None:
    """Each task gets its own row, and the connections are as many as were configured: also those
    that a worker keeps when it has nothing to do."""
    row = guarded(pool)
    cell = row.cells[column]
    assert (cell.right, cell.wrong, cell.failed, cell.never) == (TASKS, 0, [], 0), row.said
    assert cell.idle <= bound(pool, column)
    if column == "default" or (column == "kept" and pool in ("gevent", "eventlet")):
        # What is not to be kept is opened by each task, as by each request in Django. So it is
        # where each task is a greenlet of its own: nobody comes back for what it has kept.
        assert cell.opened <= TASKS
    else:
        assert cell.opened <= bound(pool, column)


@pytest.mark.celery
@pytest.mark.parametrize("pool", POOLS)
def test_guarded_worker_ends(pool: str, guarded: Rows) -> None:
    """It closes what it has: nothing is left for the kernel to close."""
    row = guarded(pool)
    assert (row.status, row.left, row.unclean) == (0, 0, []), row.said


@pytest.mark.celery
def test_what_a_native_pool_per_task_costs(bare: Row, guarded: Rows) -> None:
    """celery#10554: how long a task takes that asks through Django's native pool."""
    cells = bare.cells["pooled"], guarded("prefork").cells["pooled"]
    times = [1000 * cell.took for cell in cells]
    print(f"a query through a native pool, ms: bare {times[0]:.1f}, guarded {times[1]:.1f}")
    assert times[0] > 2 * times[1]


@pytest.mark.parametrize("pool", SMOKE)
def test_smoke(pool: str, start: Workers) -> None:
    """The cells that were worst, in each run of the tests: a native pool (celery#10554), and one
    that is open before the fork."""
    columns = ("pooled", "import", "lazy")
    worker = start("connections", pool=pool, concurrency=2, env={"APP_IMPORT": "1"})
    row = run(worker, columns, tasks=40)
    for column, cell in row.cells.items():
        assert (cell.right, cell.wrong, cell.failed, cell.never) == (40, 0, [], 0), row.said
        assert cell.opened <= bound(pool, column)
        assert cell.idle <= bound(pool, column)
    assert (row.status, row.left, row.unclean) == (0, 0, []), row.said


# -- bare -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare(start_shared: Workers) -> Row:
    """Four prefork children without lifeguard, through every column but that which breaks them."""
    worker = start_shared("connections", bare=True)
    return run(worker, tuple(column for column in COLUMNS if column != "import"))


@pytest.mark.celery
@pytest.mark.parametrize("column", ["default", "kept"])
def test_bare_a_connection_per_task(bare: Row, column: str) -> None:
    """Celery's fixup closes Django's connections before and after each task. CONN_MAX_AGE=60
    means nothing in a worker."""
    cell = bare.cells[column]
    assert (cell.right, cell.opened, cell.idle) == (TASKS, TASKS, 0)


@pytest.mark.celery
def test_bare_a_native_pool_per_task(bare: Row) -> None:
    """It closes the native pool as well (celery#10554): each task opens one, three connections
    where it needs one."""
    cell = bare.cells["pooled"]
    assert cell.right == TASKS
    assert cell.opened >= 2 * TASKS


@pytest.mark.celery
def test_bare_nobody_closes_what_a_child_opened(bare: Row) -> None:
    """A pool that is opened where it is needed first: the child ends without closing it."""
    cell = bare.cells["lazy"]
    assert cell.right == TASKS
    assert len([line for line in bare.unclean if ".lazy: " in line]) == cell.opened > 0


@pytest.mark.celery
def test_bare_the_signals_are_for_prefork(bare: Row, start: Workers) -> None:
    """``worker_process_init`` is sent to each prefork child, and to no other pool: what relies on
    it has no pool in threads."""
    worker = start("connections", pool="threads", bare=True)
    row = run(worker, ("kept", "init"))
    assert (bare.inits, row.inits) == (CHILDREN, 0)
    assert row.cells["kept"].opened == TASKS
    assert row.cells["init"].opened <= MAX_SIZE  # by the app's own lazy open
    assert bare.unclean and not [line for line in bare.unclean if ".init: " in line]


@pytest.mark.celery
def test_bare_a_pool_that_is_open_before_the_fork(start: Workers) -> None:
    """Four children share its sockets: tasks get another's row, errors, or no answer at all."""
    worker = start("connections", bare=True, env={"APP_IMPORT": "1"})
    cell = fill(worker, "import", within=4)
    print(f"prefork import, bare: {cell}")
    assert cell.right < TASKS
    assert cell.wrong or cell.failed or cell.never
    worker.kill()
