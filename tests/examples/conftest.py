"""Each example gets a schema of its own: its tables are new, and gone after the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from lifeguard.testing import Postgres


@pytest.fixture
def dsn(pg: Postgres, appname: str, dsn: str) -> Iterator[str]:
    schema = sql.Identifier(appname)
    with pg.connect() as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
    yield make_conninfo(dsn, options=f'-csearch_path="{appname}"')
    with pg.connect() as connection:
        connection.execute("SET lock_timeout = '5s'")
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(schema))
