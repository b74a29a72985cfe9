from __future__ import annotations

from collections.abc import Iterator

import pytest

from lifeguard.testing import Postgres
from tests.incidents.seeds.deploying import Database, database


@pytest.fixture
def db(pg: Postgres) -> Iterator[Database]:
    with database(pg, "seed") as db:
        yield db
