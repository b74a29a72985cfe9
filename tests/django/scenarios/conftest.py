"""One server process for all rows of one server and one setting."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lifeguard.testing import Postgres
from tests.django.scenarios.serving import KEEPS, SERVERS, Site
from tests.django.versions import HERE, OTHERS

CELLS = [
    pytest.param(
        (server, keeps, HERE),
        id=f"{server.split()[0]}, keeps {keeps}",
        # Every row runs on one server in each run of the tests; the rest is `make django`.
        marks=[] if server == "uvicorn" else [pytest.mark.django],
    )
    for server in SERVERS
    for keeps in KEEPS
] + [
    pytest.param(
        ("uvicorn", keeps, django),
        id=f"uvicorn, keeps {keeps}, Django {django}",
        marks=pytest.mark.django,
    )
    for django in OTHERS
    for keeps in KEEPS[:2]  # Django 4.2 has no pool
]


@pytest.fixture(scope="module", params=CELLS)
def site(
    request: pytest.FixtureRequest, pg: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """Guarded. Its rows come in the order of the table, on the same process."""
    server, keeps, django = request.param
    yield from _run(Site, server, keeps, tmp_path_factory, pg, django=django)


@pytest.fixture
def bare_site(
    request: pytest.FixtureRequest, pg: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """uvicorn without lifeguard: each test gets a process that nothing has leaked in yet."""
    yield from _run(
        Site, "uvicorn", request.param, tmp_path_factory, pg, bare=True, pool_timeout=0.5
    )


def _run(
    make: type[Site],
    server: str,
    keeps: str,
    folders: pytest.TempPathFactory,
    pg: Postgres,
    **kwargs: Any,
) -> Iterator[Site]:
    name = re.sub(r"[^a-z]+", "-", f"{server} {keeps}")
    folder: Path = folders.mktemp(name)
    site = make(server, keeps, folder, pg, f"django-{folder.name}", **kwargs)
    try:
        site.start()
        yield site
    finally:
        site.kill()
    assert pg.wait_count(0, application_name=site.application_name) == 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report: pytest.TestReport = yield
    if report.failed and Path(__file__).parent in item.path.parents:
        for fixture in ("site", "bare_site"):
            if fixture in getattr(item, "funcargs", {}):
                report.sections.append((f"log of the {fixture}", item.funcargs[fixture].tail()))
    return report
