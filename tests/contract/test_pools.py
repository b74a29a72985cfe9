"""The pools of psycopg_pool keep the contract."""

from __future__ import annotations

from typing import Any

import psycopg_pool

from tests.contract.pool import PoolContract


class TestConnectionPool(PoolContract):
    """``psycopg_pool.ConnectionPool``."""

    cls: Any = psycopg_pool.ConnectionPool
    full = psycopg_pool.PoolTimeout

    def make(self, dsn: str, max_size: int) -> Any:
        sizes = {"min_size": 1} if self.keeps else {}
        kwargs = {"autocommit": False}  # not a setting of libpq
        return self.cls(dsn, kwargs=kwargs, open=False, max_size=max_size, timeout=1, **sizes)

    async def open(self, pool: Any) -> None:
        pool.open(wait=True)

    async def close(self, pool: Any) -> None:
        pool.close()

    def is_closed(self, pool: Any) -> bool:
        return bool(pool.closed)

    async def borrow(self, pool: Any) -> Any:
        return pool.getconn()

    async def give_back(self, pool: Any, conn: Any) -> None:
        pool.putconn(conn)

    async def ask(self, conn: Any, query: str) -> Any:
        return conn.execute(query).fetchone()[0]

    def out(self, pool: Any) -> int:
        stats = pool.get_stats()
        return int(stats["pool_size"] - stats["pool_available"])


class TestNullConnectionPool(TestConnectionPool):
    """``psycopg_pool.NullConnectionPool``."""

    cls = psycopg_pool.NullConnectionPool
    keeps = False


class TestAsyncConnectionPool(TestConnectionPool):
    """``psycopg_pool.AsyncConnectionPool``."""

    cls = psycopg_pool.AsyncConnectionPool
    is_async = True

    async def open(self, pool: Any) -> None:
        await pool.open(wait=True)

    async def close(self, pool: Any) -> None:
        await pool.close()

    async def borrow(self, pool: Any) -> Any:
        return await pool.getconn()

    async def give_back(self, pool: Any, conn: Any) -> None:
        await pool.putconn(conn)

    async def ask(self, conn: Any, query: str) -> Any:
        return (await (await conn.execute(query)).fetchone())[0]


class TestAsyncNullConnectionPool(TestAsyncConnectionPool):
    """``psycopg_pool.AsyncNullConnectionPool``."""

    cls = psycopg_pool.AsyncNullConnectionPool
    keeps = False
