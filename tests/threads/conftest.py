from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lifeguard.testing import Postgres
from tests.threads.columns import Columns, columns
from tests.threads.kinds import TABLE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of a column waits for all its cells, and for an overlay to be installed."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def table(pg: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Columns]:
    """The programs that fill the table, each started when somebody asks for its cells."""
    with pg.connect() as connection:
        connection.execute(f"CREATE TABLE {TABLE} (value text)")
    with columns(pg, tmp_path_factory.mktemp("threads")) as table:
        yield table
    with pg.connect() as connection:
        connection.execute(f"DROP TABLE {TABLE}")
