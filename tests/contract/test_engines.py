"""The engines of SQLAlchemy keep the contract of pools."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
import sqlalchemy
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.ext.asyncio import create_async_engine

import lifeguard
from tests.contract.pool import Fixture, PoolContract


def url_of(dsn: str) -> sqlalchemy.URL:
    """*dsn* as SQLAlchemy writes it."""
    parts: dict[str, Any] = dict(conninfo_to_dict(dsn))
    return sqlalchemy.URL.create(
        "postgresql+psycopg",
        username=parts.pop("user", None),
        password=parts.pop("password", None),
        host=parts.pop("host", None),
        port=int(parts.pop("port", 5432)),
        database=parts.pop("dbname", None),
        query={key: str(value) for key, value in parts.items()},
    )


class TestEngine(PoolContract):
    """``sqlalchemy.Engine``, with psycopg."""

    full = sqlalchemy.exc.TimeoutError
    stale = "invalid transaction is rolled back"
    create: Any = staticmethod(sqlalchemy.create_engine)

    def setup_method(self) -> None:
        self.held: list[Any] = []  # what nobody holds, SQLAlchemy gives back by itself

    async def leak(self, fixture: Fixture) -> Any:
        """Also begin a transaction: without one a connection is free to connect anew."""
        with pytest.warns(lifeguard.LeakWarning):  # noqa: PT031
            async with self.unit(fixture.guard):
                conn = await self.borrow(fixture.pool)
                await self.pid(conn)
                return conn

    def make(self, dsn: str, max_size: int) -> Any:
        return self.create(url_of(dsn), pool_size=max_size, max_overflow=0, pool_timeout=1)

    async def open(self, pool: Any) -> None:
        pool.connect().close()

    async def close(self, pool: Any) -> None:
        pool.dispose()

    def is_closed(self, pool: Any) -> bool:
        return bool(pool.pool.checkedin() == pool.pool.checkedout() == 0)

    async def borrow(self, pool: Any) -> Any:
        self.held.append(pool.connect())
        return self.held[-1]

    async def give_back(self, pool: Any, conn: Any) -> None:
        conn.close()

    async def ask(self, conn: Any, query: str) -> Any:
        return conn.exec_driver_sql(query).scalar()

    def out(self, pool: Any) -> int:
        return int(pool.pool.checkedout())

    def test_unreachable(self, fixture: Fixture) -> None:
        """A database that is not there: the worker does not open, the error says which engine and
        where, never the password, and nothing is left half open."""
        fixture.pool = self.make("host=127.0.0.1 port=1 user=shop password=s3cret dbname=orders", 1)

        async def main() -> BaseException:
            with pytest.raises(sqlalchemy.exc.OperationalError) as caught:
                async with self.worker(fixture):
                    pass
            return caught.value

        error = self.run(main)
        text = "".join(traceback.format_exception(error))
        for part in ("127.0.0.1", "port=1", "engine 'orders'", "refused"):
            assert part in text
        assert "s3cret" not in str(error) + "".join(error.__notes__)
        assert self.is_closed(fixture.pool)
        assert repr(fixture.guard._worker.state) == "closed"


class TestAsyncEngine(TestEngine):
    """``sqlalchemy.ext.asyncio.AsyncEngine``, with psycopg."""

    is_async = True
    create = staticmethod(create_async_engine)

    async def open(self, pool: Any) -> None:
        await (await pool.connect()).close()

    async def close(self, pool: Any) -> None:
        await pool.dispose()

    async def borrow(self, pool: Any) -> Any:
        self.held.append(await pool.connect())
        return self.held[-1]

    async def give_back(self, pool: Any, conn: Any) -> None:
        await conn.close()

    async def ask(self, conn: Any, query: str) -> Any:
        return (await conn.exec_driver_sql(query)).scalar()
