"""The network between the app and PostgreSQL: cut, stalled, deaf.

A small TCP proxy stands in between. ``cut`` resets every connection, as a failover does; ``stall``
keeps them open and passes nothing on, as a lost route does; ``deaf`` accepts and never answers, as
a server that is out of breath.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

import lifeguard
from lifeguard.testing import Postgres
from tests.endings.server import LifespanServer, http_only, in_task, scope


class Proxy:
    """Passes bytes between a port of its own and a server, for as long as it is in the mood."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket | None]] = []
        self._lock = threading.Lock()
        self._flows = threading.Event()
        self._flows.set()
        self._deaf = False
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, func: Any, *args: Any) -> None:
        thread = threading.Thread(target=func, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = None
            if not self._deaf:
                server = socket.create_connection(self._target)
                self._start(self._pass_on, client, server)
                self._start(self._pass_on, server, client)
            with self._lock:
                self._pairs.append((client, server))

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                if self._closed:
                    break
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def cut(self) -> int:
        """Reset every connection there is. How many there were."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for client, server in pairs:
            for end in filter(None, (client, server)):
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.shutdown(socket.SHUT_RD)
                with contextlib.suppress(OSError):
                    end.close()
        return len(pairs)

    def stall(self) -> None:
        self._flows.clear()

    def flow(self) -> None:
        self._flows.set()

    def deaf(self) -> None:
        self._deaf = True

    def hear(self) -> None:
        self._deaf = False

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._flows.set()
        self.cut()
        for thread in self._threads:
            thread.join(5)


@pytest.fixture
def proxy(pg: Postgres) -> Iterator[Proxy]:
    known = conninfo_to_dict(pg.dsn)
    proxy = Proxy(str(known["host"]), int(known["port"]))  # type: ignore[arg-type]
    yield proxy
    proxy.close()


@pytest.fixture
def through(proxy: Proxy, dsn: str) -> str:
    """The dsn of this test, by way of the proxy. A connection attempt gives up after 2 s."""
    return make_conninfo(dsn, host="127.0.0.1", port=proxy.port, connect_timeout=2)


@pytest.fixture
def guard() -> lifeguard.Lifeguard:
    return lifeguard.Lifeguard(handle_sigterm=False, grace=1, open_timeout=3)


def full(pool: ConnectionPool, size: int) -> bool:
    """Whether the pool can lend *size* connections that work, at the same time."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(pool.connection(timeout=8)) for _ in range(size)]
        return all(conn.execute("SELECT 1").fetchone() == (1,) for conn in held)


@pytest.mark.filterwarnings("ignore::lifeguard.LeakWarning")
@pytest.mark.parametrize("tidy", [True, False], ids=["block", "forgotten"])
def test_connections_that_are_cut_in_the_middle_of_requests(
    tidy: bool, proxy: Proxy, through: str, guard: lifeguard.Lifeguard, pg: Postgres, appname: str
) -> None:
    """Two requests are in a transaction when the network resets: they fail as they would without
    lifeguard, and the pool is as large as before."""
    pool = ConnectionPool(through, open=False, min_size=2, max_size=2, timeout=8)
    inside = threading.Barrier(3)
    is_cut = threading.Event()

    def request() -> str:
        try:
            with guard.unit():
                if tidy:
                    with pool.connection() as conn:
                        ask(conn)
                else:
                    ask(pool.getconn())
        except psycopg.OperationalError:
            return "OperationalError"
        return "fine"

    def ask(conn: Any) -> None:
        conn.execute("SELECT 1")
        inside.wait(10)
        is_cut.wait(10)
        conn.execute("SELECT 1")

    from concurrent.futures import ThreadPoolExecutor

    with guard.worker(resources=[pool]):
        with ThreadPoolExecutor(2) as executor:
            running = [executor.submit(request) for _ in range(2)]
            inside.wait(10)
            assert proxy.cut() >= 2
            is_cut.set()
            assert [future.result() for future in running] == ["OperationalError"] * 2
        assert full(pool, 2)
        assert pg.count(prefix=appname) <= 4
    assert pg.wait_count(0, prefix=appname) == 0


@pytest.mark.filterwarnings("ignore::lifeguard.LeakWarning")
def test_a_stalled_request_is_cancelled(
    proxy: Proxy, through: str, guard: lifeguard.Lifeguard
) -> None:
    """A request that waits for an answer which never comes is cancelled, as servers do: it ends
    within psycopg's own patience and the grace, its callback runs, and when the network is back,
    so is the pool."""
    log: list[str] = []

    async def main() -> float:
        pool = AsyncConnectionPool(through, open=False, min_size=1, max_size=1, timeout=8)
        waiting = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            guard.callback(log.append, "callback")
            conn = await pool.getconn()
            proxy.stall()
            waiting.set()
            await conn.execute("SELECT 1")

        served = guard.wrap(http_only(app), resources=[pool])
        server = LifespanServer(served)
        async with in_task(server.main):
            await server.startup()
            began = time.monotonic()
            async with in_task(lambda: served(scope(), None, None)) as task:
                await waiting.wait()
                await asyncio.sleep(0)
                task.cancel()
            took = time.monotonic() - began
            proxy.flow()
            async with pool.connection() as conn:
                row = await (await conn.execute("SELECT 1")).fetchone()
                assert row == (1,)
            server.shut_down()
        return took

    assert asyncio.run(main()) < 15
    assert log == ["callback"]


def test_closing_while_the_network_is_stalled(
    proxy: Proxy, through: str, guard: lifeguard.Lifeguard, pg: Postgres, appname: str
) -> None:
    """A worker closes in time although nothing it sends arrives: sync and async."""

    async def main() -> float:
        pool = AsyncConnectionPool(through, open=False, min_size=2)
        block = guard.worker(resources=[pool])
        async with block:
            proxy.stall()
            began = time.monotonic()
        return time.monotonic() - began

    assert asyncio.run(main()) < 15
    proxy.flow()
    assert pg.wait_count(0, prefix=appname) == 0

    pool = ConnectionPool(through, open=False, min_size=2)
    with guard.worker(resources=[pool]):
        proxy.stall()
        began = time.monotonic()
    assert time.monotonic() - began < 15
    proxy.flow()
    assert pg.wait_count(0, prefix=appname) == 0


def test_a_leak_while_the_network_is_stalled(
    proxy: Proxy, through: str, guard: lifeguard.Lifeguard
) -> None:
    """Taking back what was forgotten does not wait for the network."""

    async def main() -> float:
        pool = AsyncConnectionPool(through, open=False, min_size=1, max_size=1, timeout=8)
        async with guard.worker(resources=[pool]):
            began = 0.0
            with pytest.warns(lifeguard.LeakWarning):  # noqa: PT031
                async with guard.unit():
                    await pool.getconn()
                    proxy.stall()
                    began = time.monotonic()
            took = time.monotonic() - began
            proxy.flow()
            async with pool.connection() as conn:
                assert await (await conn.execute("SELECT 1")).fetchone() == (1,)
        return took

    assert asyncio.run(main()) < 2


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_opening_towards_a_deaf_server(
    kind: str, proxy: Proxy, dsn: str, guard: lifeguard.Lifeguard
) -> None:
    """A server that accepts and never answers, with a dsn that sets no connect_timeout: opening
    ends within open_timeout and says which pool it was."""
    through = make_conninfo(dsn, host="127.0.0.1", port=proxy.port)
    guard.open_timeout = 1
    proxy.deaf()

    def opening() -> float:
        began = time.monotonic()
        with pytest.raises(Exception, match=r"(?i)time") as caught:
            if kind == "sync":
                with guard.worker(resources=[ConnectionPool(through, open=False, name="orders")]):
                    pass
            else:

                async def main() -> None:
                    pool = AsyncConnectionPool(through, open=False, name="orders")
                    async with guard.worker(resources=[pool]):
                        pass

                asyncio.run(main())
        said = str(caught.value) + " ".join(getattr(caught.value, "__notes__", ()))
        assert "orders" in said
        return time.monotonic() - began

    took: list[Any] = []

    def note() -> None:
        try:
            took.append(opening())
        except BaseException as exc:
            took.append(exc)

    thread = threading.Thread(target=note, daemon=True)
    thread.start()
    thread.join(20)
    if not took:
        proxy.cut()
        thread.join(5)
        pytest.fail("opening takes longer than open_timeout")
    assert isinstance(took[0], float), took[0]
    assert took[0] < 18


def test_a_deaf_server_while_the_pool_is_open(
    proxy: Proxy, through: str, guard: lifeguard.Lifeguard
) -> None:
    """No new connection can be made: whoever waits gets the pool's own PoolTimeout, the worker
    closes in time, and nobody hangs."""
    pool = ConnectionPool(through, open=False, min_size=1, max_size=2, timeout=0.5)
    with guard.worker(resources=[pool]):
        proxy.deaf()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with guard.unit(), pool.connection() as conn:
                assert conn.execute("SELECT 1").fetchone() == (1,)
                with pytest.raises(PoolTimeout):
                    pool.getconn()
        began = time.monotonic()
    assert time.monotonic() - began < 15


def test_the_proxy_is_a_proxy(proxy: Proxy, through: str) -> None:
    """The instrument itself: it passes on, stalls, resets and keeps silent."""
    with psycopg.connect(through) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)
        proxy.stall()
        done = threading.Event()
        thread = threading.Thread(target=lambda: (conn.execute("SELECT 1"), done.set()))
        thread.start()
        assert not done.wait(0.2)
        proxy.flow()
        assert done.wait(5)
        thread.join()
        assert proxy.cut() == 1
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")
    proxy.deaf()
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        psycopg.connect(through)
