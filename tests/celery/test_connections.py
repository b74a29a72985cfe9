"""How many connections tasks open: each pool of Celery, each place people keep connections in.

One worker goes through the whole row, column by column, as the columns have application_names of
their own. Each task asks PostgreSQL for its own number, so that another task's row is seen.

The bare cells say what is wrong there without lifeguard: they are what was measured with Celery
5.7 (and 5.6), Django 5.2 and 6.1.
"""

from __future__ import annotations

import signal
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.celery.worker import POOLS, CeleryWorker, Workers

pytestmark = pytest.mark.timeout(400)

CHILDREN = 4
MIN_SIZE, MAX_SIZE = 2, 4
COLUMNS = ("default", "kept", "pooled", "import", "lazy", "init")
"""Django with CONN_MAX_AGE=0, with 60, with its native pool; a psycopg_pool that is opened at
import, in the child when it is first needed, in ``worker_process_init``."""

GREEN = ("gevent", "eventlet")


@dataclass
class Cell:
    """What the tasks did in one column."""

    tasks: int
    right: int
    wrong: int
    failed: list[Any]
    never: int
    opened: int
    idle: int
    """Connections there are while no task runs."""
    took: float
    """Seconds of the median task."""

    def is_right(self) -> bool:
        return (self.right, self.wrong, self.failed, self.never) == (self.tasks, 0, [], 0)


@dataclass
class Row:
    """One worker, which goes through some columns, and then ends."""

    worker: CeleryWorker
    tasks: int
    cells: dict[str, Cell] = field(default_factory=dict)

    def fill(self, *columns: str, within: float = 90.0) -> Row:
        for column in columns:
            self.cells[column] = cell = self._cell(column, within)
            print(f"{self.worker.pool} {column}: {cell}")
        return self

    def _cell(self, column: str, within: float) -> Cell:
        worker = self.worker
        sent = worker.send_all("ask", [(column, number) for number in range(self.tasks)])
        answers = worker.gather(sent, within=within)
        ok = [(number, answer.result) for number, answer in enumerate(answers) if answer.ok]
        return Cell(
            tasks=self.tasks,
            right=sum(number == result[0] for number, result in ok),
            wrong=sum(number != result[0] for number, result in ok),
            failed=[answer.result for answer in answers if answer.state == "FAILURE"],
            never=sum(answer.state == "PENDING" for answer in answers),
            opened=worker.opened()[column],
            idle=self.settled(column),
            took=statistics.median(result[3] for _, result in ok) if ok else 0.0,
        )

    def settled(self, column: str) -> int:
        """How many connections are idle: a backend leaves a moment after its client."""
        per_task = self.worker.bare and column in ("default", "kept", "pooled")
        at_most = 0 if per_task else self.bound(column)
        deadline = time.monotonic() + 30
        while (count := self.worker.idle(column)) > at_most and time.monotonic() < deadline:
            time.sleep(0.02)
        return count

    def bound(self, column: str) -> int:
        """How many connections there may be."""
        at_once = self.worker.concurrency
        children = at_once if self.worker.pool == "prefork" else 1
        if column == "default":
            return 0
        if column == "kept":
            return at_once
        if column == "import" and self.worker.pool == "prefork":
            return children * MAX_SIZE + MIN_SIZE  # those of the parent, which opened it
        return children * MAX_SIZE

    def ends_well(self) -> None:
        """The worker closes what it has: nothing is left for the kernel to close."""
        assert self.worker.wait() == 0
        assert self.worker.left() == 0
        assert self.worker.unclean() == []


# -- guarded --------------------------------------------------------------------------------------


class Table:
    """A row for each pool of Celery, with lifeguard."""

    def __init__(self, start: Workers) -> None:
        self.start = start
        self.rows: dict[str, Row] = {}

    def __getitem__(self, pool: str) -> Row:
        if pool not in self.rows:
            worker = self.start("connections", pool=pool, env={"APP_IMPORT": "1"})
            tasks = 120 if pool == "prefork" else 60
            self.rows[pool] = Row(worker, tasks).fill(*COLUMNS)
            # It ends while the next row is filled; of a cold shutdown, where there are children.
            worker.send_signal(signal.SIGQUIT if pool == "prefork" else signal.SIGTERM)
        return self.rows[pool]


@pytest.fixture(scope="module")
def table(start_shared: Workers) -> Table:
    return Table(start_shared)


@pytest.mark.celery
@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("pool", POOLS)
def test_guarded(pool: str, column: str, table: Table) -> None:
    """Each task gets its own row, and the connections are as many as were configured: also those
    that a worker keeps when it has nothing to do."""
    row = table[pool]
    cell = row.cells[column]
    assert cell.is_right()
    assert cell.idle <= row.bound(column)
    if column == "default" or (column == "kept" and pool in GREEN):
        # What is not to be kept is opened by each task, as by each request in Django. So it is
        # where each task is a greenlet of its own: nobody comes back for what it has kept.
        assert cell.opened <= cell.tasks
    else:
        assert cell.opened <= row.bound(column)


@pytest.mark.celery
@pytest.mark.parametrize("pool", POOLS)
def test_guarded_worker_ends(pool: str, table: Table) -> None:
    """What it kept between tasks is closed when it ends, by itself."""
    table[pool].ends_well()


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_smoke(pool: str, start: Workers) -> None:
    """The cells that were worst, in each run of the tests: a native pool (celery#10554), and one
    that is open before the fork. The whole table is `make celery`."""
    worker = start("connections", pool=pool, concurrency=2, env={"APP_IMPORT": "1"})
    row = Row(worker, tasks=30).fill("kept", "pooled", "import")
    for column, cell in row.cells.items():
        assert cell.is_right()
        assert cell.opened <= row.bound(column)
        assert cell.idle <= row.bound(column)
    worker.send_signal(signal.SIGTERM)
    row.ends_well()


# -- bare -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare(start_shared: Workers) -> Row:
    """Four prefork children without lifeguard, through every column but that which breaks them."""
    row = Row(start_shared("connections", bare=True), tasks=60)
    row.fill(*(column for column in COLUMNS if column != "import"))
    row.worker.stop()
    assert row.worker.left() == 0  # and so the log of PostgreSQL is complete
    return row


@pytest.mark.celery
@pytest.mark.parametrize("column", ["default", "kept"])
def test_bare_a_connection_per_task(bare: Row, column: str) -> None:
    """Celery's fixup closes Django's connections before and after each task. CONN_MAX_AGE=60
    means nothing in a worker."""
    cell = bare.cells[column]
    assert cell.is_right()
    assert (cell.opened, cell.idle) == (cell.tasks, 0)


@pytest.mark.celery
def test_bare_a_native_pool_per_task(bare: Row) -> None:
    """It closes the native pool as well (celery#10554): each task opens one, three connections
    where it needs one."""
    cell = bare.cells["pooled"]
    assert cell.is_right()
    assert cell.opened > cell.tasks  # the others may be too late for a task that is over


@pytest.mark.celery
def test_what_a_native_pool_per_task_costs(bare: Row, table: Table) -> None:
    """celery#10554: how long a task takes that asks through Django's native pool."""
    cells = bare.cells["pooled"], table["prefork"].cells["pooled"]
    times = [1000 * cell.took for cell in cells]
    print(f"a query through a native pool, ms: bare {times[0]:.1f}, guarded {times[1]:.1f}")
    assert times[0] > 2 * times[1]


@pytest.mark.celery
def test_bare_nobody_closes_what_a_child_opened(bare: Row) -> None:
    """A pool that is opened where it is needed first: the child ends without closing it."""
    cell = bare.cells["lazy"]
    assert cell.is_right()
    opened = bare.worker.opened()["lazy"]
    assert len([line for line in bare.worker.unclean() if ".lazy: " in line]) == opened > 0


@pytest.mark.celery
def test_bare_the_signals_are_for_prefork(bare: Row, start: Workers) -> None:
    """``worker_process_init`` is sent to each prefork child, and not in threads: a pool that is
    opened there is closed well in the one, and does not exist in the other."""
    row = Row(start("connections", pool="threads", bare=True), tasks=60).fill("kept", "init")
    assert bare.worker.log.count("init") == CHILDREN
    assert not [line for line in bare.worker.unclean() if ".init: " in line]
    assert row.worker.log.count("init") == 0
    assert 0 < row.cells["init"].opened <= MAX_SIZE  # by the app's own lazy open
    assert row.cells["kept"].opened == row.tasks


@pytest.mark.celery
def test_bare_a_pool_that_is_open_before_the_fork(start: Workers) -> None:
    """Four children share its sockets: tasks get another's row, errors, or no answer at all."""
    row = Row(start("connections", bare=True, env={"APP_IMPORT": "1"}), tasks=120)
    cell = row.fill("import", within=3).cells["import"]
    assert cell.right < cell.tasks
    assert cell.wrong or cell.failed or cell.never
