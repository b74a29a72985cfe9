"""The only witness: what PostgreSQL itself says about who is connected.

Each side logs in as a role of its own with a CONNECTION LIMIT, so that a side that runs away
meets the same FATAL it would meet at `max_connections`, without taking the other side with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from lifeguard.testing import PostgresError

from .model import SIDES, Sample, SideName

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

EVERY = 0.1

_COUNT = """
    select application_name,
           count(*),
           count(*) filter (where state = 'active'),
           count(*) filter (where state like 'idle in transaction%%')
      from pg_stat_activity
     where application_name = any(%s)
     group by application_name
"""


class Witness:
    """One connection of its own, opened before anything else, so that no side can crowd it out."""

    def __init__(self, conn: psycopg.AsyncConnection, dsn: str) -> None:
        self._conn = conn
        self._dsn = dsn
        self._run = secrets.token_hex(3)
        self._lock = asyncio.Lock()
        self._roles: dict[SideName, tuple[str, str]] = {}
        self.can_limit = False
        """False where this login is no superuser: then no side meets a limit of its own."""
        self.version = conn.info.server_version // 10000

    def name(self, scenario: str, side: SideName) -> str:
        return f"lifeguard-demo-{self._run}/{scenario}/{side}"

    async def prepare(self) -> None:
        """A role per side, if we may see and end the sessions of other roles: a superuser may."""
        cursor = await self._conn.execute(
            "select rolsuper from pg_roles where rolname = current_user"
        )
        if await cursor.fetchone() != (True,):
            return
        for side in SIDES:
            role, password = f"lifeguard_demo_{self._run}_{side}", secrets.token_hex(8)
            await self._conn.execute(
                sql.SQL("create role {} login password {}").format(
                    sql.Identifier(role), sql.Literal(password)
                )
            )
            self._roles[side] = (role, password)
        self.can_limit = True

    async def limit(self, connections: int) -> None:
        for role, _ in self._roles.values():
            await self._conn.execute(
                sql.SQL("alter role {} connection limit {}").format(
                    sql.Identifier(role), sql.Literal(connections)
                )
            )

    def dsn(self, scenario: str, side: SideName) -> str:
        """What the app of one side connects with."""
        login: dict[str, str] = {}
        if side in self._roles:
            login["user"], login["password"] = self._roles[side]
        return make_conninfo(self._dsn, application_name=self.name(scenario, side), **login)

    async def look(self, names: list[str], at: float) -> dict[str, Sample]:
        async with self._lock:
            cursor = await self._conn.execute(_COUNT, [names])
            rows = await cursor.fetchall()
        found = {name: Sample(at, 0, 0, 0) for name in names}
        for name, total, active, in_transaction in rows:
            found[name] = Sample(at, total, active, in_transaction)
        return found

    async def settled(self, name: str, *, within: float, busy: bool = False) -> int:
        """Wait until *name* has no connection (or none that is *busy*): how many there are then.

        A backend leaves a moment after its client; what is still there after *within* stays.
        """
        deadline = time.monotonic() + within
        while True:
            sample = (await self.look([name], 0))[name]
            count = sample.active + sample.in_transaction if busy else sample.total
            if count == 0 or time.monotonic() >= deadline:
                return count
            await asyncio.sleep(EVERY / 2)

    async def dismiss(self, name: str) -> None:
        """End what a side left behind, so that the next scenario starts from nothing."""
        async with self._lock:
            await self._conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name = %s",
                [name],
            )
        await self.settled(name, within=2)

    async def clean_up(self) -> None:
        for role, _ in self._roles.values():
            with contextlib.suppress(psycopg.Error):
                await self._conn.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


@contextlib.asynccontextmanager
async def witness(dsn: str) -> AsyncIterator[Witness]:
    try:
        conn = await psycopg.AsyncConnection.connect(
            dsn, autocommit=True, application_name="lifeguard-demo-witness"
        )
    except psycopg.OperationalError as error:
        raise PostgresError(
            f"cannot connect to PostgreSQL: {error}\n"
            "Check LIFEGUARD_DSN, or unset it: then the demo starts a PostgreSQL of its own."
        ) from error
    async with conn:
        seen = Witness(conn, dsn)
        try:
            await seen.prepare()
            yield seen
        finally:
            await seen.clean_up()
