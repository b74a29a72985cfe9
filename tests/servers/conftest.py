"""Servers for the matrix, and the table at its end."""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lifeguard.testing import Postgres
from tests.servers.harness import ROOT, Server
from tests.servers.rows import ROWS, Row

REPORT = ROOT / ".lifeguard" / "servers.json"
HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: row.name)
def server(
    request: pytest.FixtureRequest, pg: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One server for all columns of its row: they come in the order of the file."""
    yield from _run(request.param, pg, tmp_path_factory)


@pytest.fixture
def bare_server(
    request: pytest.FixtureRequest, pg: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The same app without lifeguard."""
    yield from _run(request.param, pg, tmp_path_factory, bare=True)


def _run(
    row: Row, pg: Postgres, folders: pytest.TempPathFactory, *, bare: bool = False
) -> Iterator[Server]:
    name = re.sub(r"[^a-z]+", "-", row.name) + ("-bare" if bare else "")
    folder = folders.mktemp(name)
    server = Server(row, folder, pg, application_name=f"{name}.{folder.name}.", bare=bare)
    try:
        server.start()
        yield server
    finally:
        server.kill()
    assert pg.wait_count(0, prefix=server.application_name) == 0


# -- the table ------------------------------------------------------------------------------------

_results = pytest.StashKey[dict[str, dict[str, Any]]]()
_started = time.monotonic()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report: pytest.TestReport = yield
    if HERE not in item.path.parents or not isinstance(item, pytest.Function):
        return report
    if report.failed:
        for fixture in ("server", "bare_server"):
            if fixture in item.funcargs:
                report.sections.append((f"log of the {fixture}", item.funcargs[fixture].tail()))
    params = item.callspec.params if hasattr(item, "callspec") else {}
    row = params.get("server") or params.get("bare_server")
    if row is not None:
        results = item.config.stash.setdefault(_results, {})
        columns = results.setdefault(row.name, {"version": row.version, "columns": {}})["columns"]
        name = item.originalname.removeprefix("test_").replace("_", " ")
        column = columns.setdefault(name, {"outcome": "passed", "seconds": 0.0})
        column["seconds"] = round(column["seconds"] + report.duration, 2)
        if not report.passed:
            column["outcome"] = report.outcome
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    results = config.stash.get(_results, {})
    if not results:
        return
    names = list(dict.fromkeys(name for row in results.values() for name in row["columns"]))
    signs = {"passed": "ok", "failed": "FAILED", "skipped": "-"}
    lines = [["", *names]]
    for server, row in results.items():
        cells = [signs[row["columns"][n]["outcome"]] if n in row["columns"] else "" for n in names]
        lines.append([f"{server} ({row['version']})", *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    terminalreporter.section("servers")
    for line in lines:
        terminalreporter.line(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )
    report = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "seconds": round(time.monotonic() - _started, 1),
        "servers": results,
    }
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    terminalreporter.line(f"in {report['seconds']} s, written to {REPORT.relative_to(ROOT)}")
