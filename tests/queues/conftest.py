"""One redis for all tests of task queues, and workers that end with their test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lifeguard.testing import Postgres
from tests.queues.worker import Workers
from tests.support.redis import redis


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    with redis() as url:
        yield url


@pytest.fixture
def start(pg: Postgres, appname: str, broker: str, tmp_path: Path) -> Iterator[Workers]:
    """``start("-m", "rq.cli", "worker", ...)``: a worker for this test alone."""
    workers = Workers(pg, appname, broker, tmp_path, [])
    yield workers
    for worker in workers.started:
        worker.kill()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each wait of a worker has a limit of its own. The first test of an overlay installs it."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(300))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report: pytest.TestReport = yield
    if report.failed and Path(__file__).parent in item.path.parents:
        workers = getattr(item, "funcargs", {}).get("start")
        for worker in getattr(workers, "started", []):
            report.sections.append((f"output of {worker.name}", worker.said()[-6000:]))
    return report
