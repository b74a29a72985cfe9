"""What a job in a thread borrows: Django's connection, or one of a pool.

Each kind says the same three things: how one job works with it, which resources a guarded program
gives to lifeguard, and how many places of the pool are with nobody afterwards.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from psycopg.conninfo import conninfo_to_dict

POOL = 4
"""Connections of each pool."""

QUESTION = "SELECT pg_backend_pid()"
TABLE = "lifeguard_jobs"
INSERT = f"INSERT INTO {TABLE} VALUES (%s)"


class JobFailed(Exception):
    """What a failing job fails with, after it has asked the database. It knows the backend."""


class Kind:
    """One way to have a connection. The base class is for those that live in threads."""

    name = ""
    pooled = False
    jobs = 200
    """Of a guarded cell."""
    kept_by_a_unit = 0
    """How many connections a unit has after a transaction, until it ends."""

    def __init__(self, dsn: str, appname: str, guarded: bool) -> None:
        self.dsn = dsn
        self.appname = appname
        self.guarded = guarded

    def prepare(self) -> None:
        """Once per process, before anything else."""

    def open(self, timeout: float) -> list[object]:
        """Before the jobs of a cell. What a guarded program passes to the worker as resources."""
        return []

    def close(self) -> None:
        """After the jobs of a cell, where lifeguard does not do it."""

    def work(self, fail: bool) -> int:
        """One job: the process id of the backend that answered. It may fail in the middle."""
        raise NotImplementedError

    def transaction(self) -> AbstractContextManager[Callable[[str], None]]:
        """A transaction, and how to insert something in it."""
        raise NotImplementedError

    def clean_up_naively(self) -> None:
        """What people are told to do at the end of what runs in a thread."""

    def age(self) -> None:
        """Make this thread's connection older than it may get."""

    def lost(self) -> int:
        """How many connections of the pool are not in it."""
        return 0


class Django(Kind):
    """Django's connection of a thread, as the ORM uses it."""

    max_age = 0
    jobs = 64  # most of which open a connection
    kept_by_a_unit = 1

    def prepare(self) -> None:
        import django
        from django.conf import settings

        settings.configure(
            INSTALLED_APPS=["lifeguard.django"] if self.guarded else [],
            DATABASES={"default": self.database()},
            SECRET_KEY="test",
            USE_TZ=True,
            LOGGING_CONFIG=None,
        )
        django.setup()

    def database(self) -> dict[str, Any]:
        from tests.django.databases import database

        return database(self.dsn, application_name=self.appname, CONN_MAX_AGE=self.max_age)

    def work(self, fail: bool) -> int:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(QUESTION)
            backend: int = cursor.fetchone()[0]
        if fail:
            raise JobFailed(backend)
        return backend

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Callable[[str], None]]:
        from django.db import connection, transaction

        def insert(value: str) -> None:
            with connection.cursor() as cursor:
                cursor.execute(INSERT, [value])

        with transaction.atomic():
            yield insert

    def clean_up_naively(self) -> None:
        from django.db import connections

        connections.close_all()

    def age(self) -> None:
        from django.db import connection

        if connection.connection is not None:
            connection.close_at = time.monotonic()


class DjangoAge0(Django):
    name = "Django, CONN_MAX_AGE=0"


class DjangoAge60(Django):
    name = "Django, CONN_MAX_AGE=60"
    max_age = 60


class DjangoPool(Django):
    """Django's native pool: a thread keeps its connection until somebody closes the wrapper."""

    name = "Django's native pool"
    pooled = True
    jobs = 200

    def open(self, timeout: float) -> list[object]:
        from django.db import connections

        # Read when the pool is made, which is at the first connection of the cell.
        connections.settings["default"]["OPTIONS"]["pool"]["timeout"] = timeout
        if not self.guarded:  # as in the others: no job waits for the first connections
            pool = connections["default"].pool
            pool.open()
            pool.wait(60)
        return []

    def database(self) -> dict[str, Any]:
        found = super().database()
        found["OPTIONS"]["pool"] = {"min_size": POOL, "max_size": POOL}
        return found

    def close(self) -> None:
        from django.db import connection

        connection.close_pool()

    def lost(self) -> int:
        from django.db import connection

        return not_in(connection.pool)


class PsycopgPool(Kind):
    """A psycopg_pool, and a job that forgets to give back when it fails."""

    name = "psycopg_pool"
    pooled = True
    pool: Any

    def open(self, timeout: float) -> list[object]:
        from psycopg_pool import ConnectionPool

        self.pool = ConnectionPool(
            self.dsn,
            kwargs={"application_name": self.appname, "autocommit": True},
            min_size=POOL,
            max_size=POOL,
            timeout=timeout,
            open=False,
        )
        if not self.guarded:
            self.pool.open(wait=True)
        return [self.pool]

    def close(self) -> None:
        self.pool.close()

    def work(self, fail: bool) -> int:
        connection = self.pool.getconn()
        backend: int = connection.execute(QUESTION).fetchone()[0]
        if fail:
            raise JobFailed(backend)
        self.pool.putconn(connection)
        return backend

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Callable[[str], None]]:
        with self.pool.connection() as connection, connection.transaction():
            yield lambda value: connection.execute(INSERT, [value])

    def lost(self) -> int:
        return not_in(self.pool)


class SqlalchemySession(Kind):
    """A session per job, which nobody closes when the job fails."""

    name = "SQLAlchemy session"
    pooled = True
    engine: Any

    def open(self, timeout: float) -> list[object]:
        from sqlalchemy import URL, create_engine

        parts = conninfo_to_dict(self.dsn)
        url = URL.create(
            "postgresql+psycopg",
            username=str(parts["user"]),
            password=str(parts.get("password", "")),
            host=str(parts["host"]),
            port=int(parts.get("port") or 5432),
            database=str(parts["dbname"]),
        )
        self.engine = create_engine(
            url,
            pool_size=POOL,
            max_overflow=0,
            pool_timeout=timeout,
            connect_args={"application_name": self.appname},
        )
        return [self.engine]

    def close(self) -> None:
        self.engine.dispose()

    def work(self, fail: bool) -> int:
        from sqlalchemy import text
        from sqlalchemy.orm import Session

        session = Session(self.engine)
        backend: int = session.scalars(text(QUESTION)).one()
        if fail:
            raise JobFailed(backend)
        session.close()
        return backend

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Callable[[str], None]]:
        from sqlalchemy import text
        from sqlalchemy.orm import Session

        insert = text(INSERT.replace("%s", ":value"))
        with Session(self.engine) as session, session.begin():
            yield lambda value: session.execute(insert, {"value": value})

    def lost(self) -> int:
        checked_out: int = self.engine.pool.checkedout()
        return checked_out


def not_in(pool: Any) -> int:
    """What is not in a psycopg_pool: with somebody, or about to be opened."""
    stats = pool.get_stats()
    missing: int = stats.get("pool_size", 0) - stats.get("pool_available", 0)
    return missing


def settled(look: Callable[[], int], expected: int, seconds: float) -> int:
    """Look until it is as *expected*, at most for *seconds*; what it was last."""
    deadline = time.monotonic() + seconds
    while (found := look()) != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


KINDS: dict[str, type[Kind]] = {
    kind.name: kind
    for kind in (DjangoAge0, DjangoAge60, DjangoPool, PsycopgPool, SqlalchemySession)
}
