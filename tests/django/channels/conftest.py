"""The tables and users once, and one server process for all tests of one server and setting."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from lifeguard.testing import Postgres
from tests.django.channels.serving import KEEPS, SERVERS, Site, allow_open_files
from tests.servers.harness import ROOT


@dataclass
class Accounts:
    dsn: str
    cookies: dict[str, str]


@pytest.fixture(scope="session")
def accounts(pg: Postgres) -> Iterator[Accounts]:
    """The project's tables, in a schema of this run."""
    schema = f"channels_{os.getpid()}"
    dsn = make_conninfo(pg.dsn, options=f"-c search_path={schema}")
    env = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.django.channels.settings",
        "PYTHONPATH": str(ROOT),
        "APP_BARE": "1",
        "APP_DSN": dsn,
        "APP_NAME": schema,
        "CHANNELS_KEEPS": "nothing",
    }
    with pg.connect() as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        try:
            made = subprocess.run(
                [sys.executable, "-m", "tests.django.channels.accounts"],
                cwd=ROOT,
                env=env,
                stdout=subprocess.PIPE,
                timeout=200,
                check=True,
            )
            yield Accounts(dsn, json.loads(made.stdout))
        finally:
            connection.execute(f"DROP SCHEMA {schema} CASCADE")


ALWAYS = [("uvicorn", "nothing"), ("uvicorn", "in a pool"), ("daphne", "for a minute")]
"""Each server and each way to keep connections, in every run. All of them is `make django`."""

CELLS = [
    pytest.param(
        (server, keeps),
        id=f"{server}, keeps {keeps}",
        marks=[] if (server, keeps) in ALWAYS else [pytest.mark.django],
    )
    for server in SERVERS
    for keeps in KEEPS
]

Start = Callable[..., Site]


@pytest.fixture(scope="module")
def start(
    accounts: Accounts, pg: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Start]:
    """Starts a site. All are ended at the end of the module, and leave nothing."""
    allow_open_files(4096)
    with ExitStack() as stack:

        def start(server: str, keeps: str, *, bare: bool = False) -> Site:
            name = re.sub(r"[^a-z]+", "-", f"{server} {keeps}{' bare' if bare else ''}")
            folder: Path = tmp_path_factory.mktemp(name)
            dsn, cookies = accounts.dsn, accounts.cookies
            name = f"channels-{folder.name}"
            site = Site(server, keeps, folder, pg, dsn, name, cookies, bare=bare)
            stack.callback(end, site)
            site.start()
            return site

        yield start


def end(site: Site) -> None:
    site.kill()
    assert site.pg.wait_count(0, application_name=site.application_name) == 0


@pytest.fixture(scope="module", params=CELLS)
def site(request: pytest.FixtureRequest, start: Start) -> Site:
    """Guarded. All tests of the module run on the same process, in their order."""
    server, keeps = request.param
    return start(server, keeps)


@pytest.fixture(scope="module")
def bare_site(start: Start) -> Site:
    """uvicorn, without lifeguard."""
    return start("uvicorn", "nothing", bare=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report: pytest.TestReport = yield
    if report.failed and Path(__file__).parent in item.path.parents:
        for fixture in ("site", "bare_site"):
            if fixture in getattr(item, "funcargs", {}):
                report.sections.append((f"log of the {fixture}", item.funcargs[fixture].tail()))
    return report
