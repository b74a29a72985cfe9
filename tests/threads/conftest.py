from __future__ import annotations

from collections.abc import Iterator

import pytest

from lifeguard.testing import Postgres
from tests.threads.columns import Columns, columns
from tests.threads.kinds import TABLE


@pytest.fixture(scope="session")
def table(pg: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Columns]:
    """The programs that fill the table, each started when somebody asks for its cells."""
    with pg.connect() as connection:
        connection.execute(f"CREATE TABLE {TABLE} (value text)")
    with columns(pg, tmp_path_factory.mktemp("threads")) as table:
        yield table
    with pg.connect() as connection:
        connection.execute(f"DROP TABLE {TABLE}")
