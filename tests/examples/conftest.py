"""Each example gets a schema of its own: its tables are new, and gone after the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from lifeguard.testing import Postgres


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What an example does has its own limits."""
    for item in items:
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture
def dsn(pg: Postgres, appname: str, dsn: str) -> Iterator[str]:
    schema = sql.Identifier(appname)
    with pg.connect() as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
    yield make_conninfo(dsn, options=f'-csearch_path="{appname}"')
    with pg.connect() as connection:
        connection.execute("SET lock_timeout = '40s'")
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(schema))
