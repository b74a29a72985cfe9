"""The safety net on connections of psycopg: sends what :mod:`lifeguard._net` says, sync and async.

Not with cursors. They would begin a transaction or need autocommit switched on and back, where a
cancellation may come between; and they read values with the loaders that people have registered.
It stands apart from ``lifeguard.psycopg`` because it knows connections and no pools.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg import OperationalError
from psycopg.generators import execute
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus

from ._net import Net, Refused

if TYPE_CHECKING:
    from collections.abc import Generator

    Steps = Generator[bytes, list[tuple[bytes, ...]], None]


def spread(net: Net | None, conn: Any) -> None:
    """Spread *net* below a connection that nobody uses yet.

    What PostgreSQL refuses is logged. Raises :exc:`psycopg.OperationalError` if the connection is
    lost, and whatever interrupts :meth:`Connection.wait`.
    """
    if net is None or conn.pgconn.transaction_status != TransactionStatus.IDLE:
        return
    steps = _steps(net, conn.pgconn)
    query = _next(steps, conn.pgconn)
    while query is not None:
        conn.pgconn.send_query(query)
        query = _next(steps, conn.pgconn, conn.wait(execute(conn.pgconn)))


async def aspread(net: Net | None, conn: Any) -> None:
    """:func:`spread`, where the connection is async."""
    if net is None or conn.pgconn.transaction_status != TransactionStatus.IDLE:
        return
    steps = _steps(net, conn.pgconn)
    query = _next(steps, conn.pgconn)
    while query is not None:
        conn.pgconn.send_query(query)
        query = _next(steps, conn.pgconn, await conn.wait(execute(conn.pgconn)))


def _steps(net: Net, pgconn: Any) -> Steps:
    # What its settings may depend on. (The name is not asked for: the server has reported it.)
    named = pgconn.parameter_status(b"application_name")
    address = (pgconn.host, pgconn.port, pgconn.db, pgconn.user, pgconn.options, named)
    return net.steps(address, pgconn.backend_pid)


def _next(steps: Steps, pgconn: Any, results: list[Any] | None = None) -> bytes | None:
    """The next statement, after the *results* of the one before; None if there is none."""
    try:
        if results is None:
            return next(steps)
        result = results[-1]
        if pgconn.status == ConnStatus.BAD:
            raise OperationalError(f"connection lost: {result.get_error_message()}")
        if result.status != ExecStatus.TUPLES_OK:
            return steps.throw(Refused(result.get_error_message()))
        rows, columns = range(result.ntuples), range(result.nfields)
        return steps.send(
            [tuple(result.get_value(row, column) for column in columns) for row in rows]
        )
    except StopIteration:
        return None
