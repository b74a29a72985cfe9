"""What is special about SQLAlchemy's engines: sessions, the garbage collector, greenlets, forks.

What they share with pools is asked in tests/contract/test_engines.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool, StaticPool

import lifeguard
from lifeguard.testing import Postgres
from lifeguard.threads import ThreadPoolExecutor
from tests.contract.pool import in_child
from tests.contract.test_engines import url_of

SELECT = sqlalchemy.text("SELECT pg_backend_pid()")
HERE = __file__


@pytest.fixture
def guard() -> Iterator[lifeguard.Lifeguard]:
    guard = lifeguard.Lifeguard(handle_sigterm=False, grace=3, open_timeout=10)
    yield guard
    guard._worker.end()


@pytest.fixture
def engine(dsn: str) -> sqlalchemy.Engine:
    return sqlalchemy.create_engine(url_of(dsn), pool_size=2, max_overflow=0, pool_timeout=1)


@pytest.fixture
def async_engine(dsn: str) -> AsyncEngine:
    return create_async_engine(url_of(dsn), pool_size=2, max_overflow=0, pool_timeout=1)


def line() -> int:
    """The number of the line that calls this."""
    return sys._getframe(1).f_lineno


# -- sessions -------------------------------------------------------------------------------------


def test_a_session_that_is_not_closed(guard: lifeguard.Lifeguard, engine: Any) -> None:
    """The report names the line that used the session. The session says what SQLAlchemy says of a
    lost connection, and is as good as new after a rollback."""
    with guard.worker(resources=[engine]):
        with pytest.warns(lifeguard.LeakWarning, match=r"with Session\(engine\)") as caught:  # noqa: PT031
            with guard.unit("report"):
                session = Session(engine)
                session.execute(SELECT)
        (warning,) = caught
        assert (warning.filename, warning.lineno) == (HERE, line() - 2)
        assert engine.pool.checkedout() == 0
        with pytest.raises(sqlalchemy.exc.PendingRollbackError):
            session.execute(SELECT)
        session.rollback()
        with guard.unit("report"):
            session.execute(SELECT)
            session.close()


def test_a_scoped_session_that_is_not_removed(guard: lifeguard.Lifeguard, engine: Any) -> None:
    """It belongs to the thread, and outlives the unit: its connection does not."""
    Scoped = scoped_session(sessionmaker(engine))
    with guard.worker(resources=[engine]):
        with pytest.warns(lifeguard.LeakWarning):
            with guard.unit():
                Scoped.execute(SELECT)
        assert engine.pool.checkedout() == 0
        Scoped.remove()
        with guard.unit():
            Scoped.execute(SELECT)
            Scoped.remove()


def test_an_async_session_that_is_not_closed(
    guard: lifeguard.Lifeguard, async_engine: AsyncEngine
) -> None:
    """Its calls run on a greenlet, whose stack does not begin at the line that made them: the
    report names that line all the same."""

    async def main() -> None:
        async with guard.worker(resources=[async_engine]):
            with pytest.warns(lifeguard.LeakWarning) as caught:  # noqa: PT031
                async with guard.unit("report"):
                    session = AsyncSession(async_engine)
                    await session.execute(SELECT)
            (warning,) = caught
            assert (warning.filename, warning.lineno) == (HERE, line() - 2)
            with pytest.raises(sqlalchemy.exc.PendingRollbackError):
                await session.execute(SELECT)
            await session.close()

    asyncio.run(main())


# -- what nobody holds ----------------------------------------------------------------------------


def test_what_nobody_holds_comes_back(guard: lifeguard.Lifeguard, engine: Any) -> None:
    """SQLAlchemy gives back what is thrown away, more often than there are places: lifeguard does
    not hold it until the unit ends, and has nothing to report."""
    with guard.worker(resources=[engine]), warnings.catch_warnings():
        warnings.simplefilter("error")
        with guard.unit():
            for _ in range(6):
                engine.connect()
        assert engine.pool.checkedout() == 0


def test_what_the_collector_finds_is_named(
    guard: lifeguard.Lifeguard, async_engine: AsyncEngine, pg: Postgres, appname: str
) -> None:
    """Of an async connection that was forgotten SQLAlchemy can only say that it was. lifeguard says
    where it came from, and closes it."""

    async def main() -> None:
        async with guard.worker(resources=[async_engine]):
            async with guard.unit("report"):
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    await async_engine.connect()
                    gc.collect()
            leaks = [w for w in caught if issubclass(w.category, lifeguard.LeakWarning)]
            assert [(w.filename, w.lineno) for w in leaks] == [(HERE, line() - 3)]
            assert async_engine.pool.checkedout() == 0  # type: ignore[attr-defined]
            assert pg.wait_count(0, prefix=appname) == 0

    asyncio.run(main())


def test_detached(guard: lifeguard.Lifeguard, engine: Any) -> None:
    """Who takes a connection out of the pool for good looks after it."""
    with guard.worker(resources=[engine]), warnings.catch_warnings():
        warnings.simplefilter("error")
        with guard.unit():
            conn = engine.connect()
            conn.detach()
        assert conn.execute(SELECT).scalar() > 0
        conn.close()


# -- the worker's end -----------------------------------------------------------------------------


def test_what_is_returned_after_the_end_is_closed(
    guard: lifeguard.Lifeguard, engine: Any, pg: Postgres, appname: str
) -> None:
    """Borrowed outside of every unit, and still out when the worker closes: its own return closes
    it, for the pool that it came from is nobody's any more."""
    with guard.worker(resources=[engine]):
        held = engine.connect()
    assert held.execute(SELECT).scalar() > 0
    held.close()
    assert pg.wait_count(0, prefix=appname) == 0


@pytest.mark.parametrize("how", ["generator", "manager"])
def test_an_engine_that_is_yielded(
    how: str, guard: lifeguard.Lifeguard, dsn: str, pg: Postgres, appname: str
) -> None:
    """Nobody has to write dispose()."""

    def db() -> Iterator[sqlalchemy.Engine]:
        yield sqlalchemy.create_engine(url_of(dsn))

    source: Any = db if how == "generator" else contextlib.contextmanager(db)
    resource = guard.resource(source)
    for _ in range(2):
        with guard.worker(), guard.unit(), resource.get().connect() as conn:
            conn.execute(SELECT)
        assert pg.wait_count(0, prefix=appname) == 0


def test_an_async_engine_that_is_yielded(
    guard: lifeguard.Lifeguard, async_engine: AsyncEngine, pg: Postgres, appname: str
) -> None:
    """The same one serves one loop after another."""

    @guard.resource
    async def db() -> AsyncIterator[AsyncEngine]:
        yield async_engine

    async def main() -> None:
        async with guard.worker(), guard.unit(), db.get().connect() as conn:
            await conn.execute(SELECT)

    for _ in range(2):
        asyncio.run(main())
        assert pg.wait_count(0, prefix=appname) == 0


def test_a_loop_that_ends_without_a_word(
    guard: lifeguard.Lifeguard, async_engine: AsyncEngine, pg: Postgres, appname: str
) -> None:
    """The worker's loop is closed under it: what the engine has open is shut all the same."""
    loop = asyncio.new_event_loop()
    block = guard.worker(resources=[async_engine])
    loop.run_until_complete(block.__aenter__())
    assert pg.count(prefix=appname) == 1
    loop.close()
    guard._worker.end()
    assert pg.wait_count(0, prefix=appname) == 0


def test_an_async_engine_in_a_sync_worker(
    guard: lifeguard.Lifeguard, async_engine: AsyncEngine
) -> None:
    """It cannot be opened there, and the error says where it can."""
    with pytest.raises(TypeError, match="is async: open it where there is an event loop"):
        with guard.worker(resources=[async_engine]):
            pass


# -- other pools ----------------------------------------------------------------------------------


def test_a_null_pool(guard: lifeguard.Lifeguard, dsn: str, pg: Postgres, appname: str) -> None:
    """It keeps nothing. What is forgotten is closed all the same."""
    engine = sqlalchemy.create_engine(url_of(dsn), poolclass=NullPool)
    with guard.worker(resources=[engine]):
        assert pg.wait_count(0, prefix=appname) == 0
        with pytest.warns(lifeguard.LeakWarning):  # noqa: PT031
            with guard.unit():
                held = engine.connect()
                held.execute(SELECT)
        assert pg.wait_count(0, prefix=appname) == 0


def test_a_database_in_memory(guard: lifeguard.Lifeguard) -> None:
    """Its one connection is the database: nobody is to take that back."""
    engine = sqlalchemy.create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    with guard.worker(resources=[engine]):
        with guard.unit():
            held = engine.connect()
            held.exec_driver_sql("CREATE TABLE t (x)")
        with guard.unit(), engine.connect() as conn:
            assert conn.exec_driver_sql("SELECT count(*) FROM t").scalar() == 0
        held.close()


# -- threads --------------------------------------------------------------------------------------


def test_two_hundred_jobs_over_two_connections(
    guard: lifeguard.Lifeguard, dsn: str, pg: Postgres, appname: str
) -> None:
    """Sixteen threads, each job of which forgets its session: nobody waits in vain, and no more
    than two are out at a time."""
    engine = sqlalchemy.create_engine(url_of(dsn), pool_size=2, max_overflow=0, pool_timeout=30)
    pool: Any = engine.pool
    held: list[Session] = []

    def job(number: int) -> Any:
        held.append(Session(engine))
        answer = held[-1].execute(sqlalchemy.text(f"SELECT {number}")).scalar()
        return answer, pool.checkedout()

    with guard.worker(resources=[engine]), warnings.catch_warnings():
        warnings.simplefilter("ignore", lifeguard.LeakWarning)
        with ThreadPoolExecutor(16, guard=guard) as executor:
            results = list(executor.map(job, range(200)))
        assert [answer for answer, _ in results] == list(range(200))
        assert {out for _, out in results} <= {1, 2}
        assert pool.checkedout() == 0
    assert pg.wait_count(0, prefix=appname) == 0


# -- forks ----------------------------------------------------------------------------------------


def test_what_a_child_holds_from_before(
    guard: lifeguard.Lifeguard, engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A session and a connection that were in use: using them says whose they are. They can be
    rolled back and closed, and connect anew then. The parent's transaction goes on."""

    def child() -> Any:
        said = []
        for held in (session, conn):
            with pytest.raises(lifeguard.WrongProcessError) as caught:
                held.execute(SELECT)
            said.append(str(caught.value))
            held.rollback()
        conn.close()
        with guard.unit():
            mine = session.execute(SELECT).scalar()
            session.close()
        guard._worker.end()
        lines = [r.getMessage() for r in caplog.records if r.levelname in ("WARNING", "ERROR")]
        return [said, mine, lines]

    with guard.worker(resources=[engine]):
        with guard.unit(), Session(engine) as session, engine.connect() as conn:
            before = session.execute(SELECT).scalar(), conn.execute(SELECT).scalar()
            session.execute(sqlalchemy.text("SELECT set_config('a.b', 'open', true)"))
            said, theirs, lines = in_child(child)
            after = session.execute(SELECT).scalar(), conn.execute(SELECT).scalar()
            assert after == before
            look = sqlalchemy.text("SELECT current_setting('a.b')")
            assert session.execute(look).scalar() == "open"
    assert theirs not in before
    assert all(f"of engine {engine.url.database!r}" in text for text in said)
    assert all(f"belongs to process {os.getpid()}" in text for text in said)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"engine {engine.url.database!r} (made at {HERE}:")
    assert "here it connects anew" in lines[0]


def test_a_child_in_the_middle_of_a_block(guard: lifeguard.Lifeguard, engine: Any) -> None:
    """A child that returns out of its parent's block leaves it in silence."""

    def child() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            stack.close()
        with guard.unit(), engine.connect() as own:
            return own.execute(SELECT).scalar()

    with guard.worker(resources=[engine]):
        with contextlib.ExitStack() as stack:
            session = stack.enter_context(Session(engine))
            mine = session.execute(SELECT).scalar()
            assert in_child(child) != mine
            assert session.execute(SELECT).scalar() == mine


def test_an_engine_that_was_used_at_import(
    guard: lifeguard.Lifeguard, engine: Any, pg: Postgres, appname: str
) -> None:
    """Tables were looked up at import, before lifeguard knew of the engine, and then a server
    forked: its child lets that connection go, and has one of its own."""
    with engine.connect() as conn:
        imported = conn.execute(SELECT).scalar()
        driver = conn.connection.driver_connection
    guard.adopt(engine)

    def child() -> Any:
        with guard.worker(resources=[engine]), guard.unit(), engine.connect() as conn:
            return [driver.closed, conn.execute(SELECT).scalar()]

    cut_off, theirs = in_child(child)
    assert cut_off
    assert theirs != imported
    with engine.connect() as conn:
        assert conn.execute(SELECT).scalar() == imported
    engine.dispose()
    assert pg.wait_count(0, prefix=appname) == 0


# -- versions -------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_sqlalchemy_2_0() -> None:
    """These tests and the contract once more, with the oldest SQLAlchemy that lifeguard knows."""
    if sqlalchemy.__version__.startswith("2.0."):
        return  # it is what runs
    from tests.support.overlay import overlay

    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", HERE, "tests/contract/test_engines.py"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{overlay('sqlalchemy20')}:{root}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
