from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from lifeguard.testing import Postgres
from tests.incidents.serving import Sides, both_sides
from tests.support.redis import redis
from tests.support.tls import tls_postgres


@pytest.fixture(scope="session")
def tls_pg() -> Iterator[Postgres]:
    """A PostgreSQL that is reached through TLS only."""
    with tls_postgres() as server:
        yield server


@pytest.fixture
def sides(dsn: str, tmp_path: Path) -> Iterator[Sides]:
    """Starts an app bare and guarded, each in processes of its own, and ends them."""
    with both_sides(dsn, tmp_path) as sides:
        yield sides


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The redis of the task queues in here."""
    with redis() as url:
        yield url


@pytest.fixture
def queue_sides(sides: Sides, redis_url: str) -> Sides:
    """Sides that have a broker: an empty database each, of one redis."""
    with Redis.from_url(redis_url) as client:
        client.flushall()
    sides.redis = redis_url.rpartition("/")[0]
    return sides


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A side has its own limits. A new machine may have to install an overlay first."""
    for item in items:
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(autouse=True)
def collected(appname: str) -> Iterator[None]:
    """What the bare side lost stays connected until the garbage collector finds it."""
    yield
    gc.collect()
