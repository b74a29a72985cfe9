"""A pool that has one connection and does nothing: what is left is what lifeguard does.

The work of a real pool is many times as much, and the same with and without lifeguard:
``bench/pool.py`` measures both together on a real database.
"""

from __future__ import annotations

from typing import Any

from psycopg_pool import ConnectionPool

__all__ = ["IdlePool"]


class IdleConnection:
    """As much of a connection as a pool's adapter looks at."""

    closed = False


class IdlePool(ConnectionPool[Any]):
    """Always open, always the same connection, never a server."""

    closed = False

    def __init__(self) -> None:
        super().__init__(open=False)
        self.connection_ = IdleConnection()

    def getconn(self, timeout: float | None = None) -> Any:
        return self.connection_

    def putconn(self, conn: Any) -> None:
        pass

    def close(self, timeout: float = 5.0) -> None:
        pass

    def borrow_and_return(self) -> None:
        self.putconn(self.getconn())
