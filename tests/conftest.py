"""What all tests share: one real PostgreSQL, a name of their own in it, and a log of events."""

from __future__ import annotations

import itertools
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from lifeguard.testing import Postgres, postgres
from tests.support.eventlog import EventLog

# Examples run on machines that are busy with other things: time is for pytest-timeout to judge.
hypothesis.settings.register_profile("lifeguard", deadline=None, print_blob=True)
hypothesis.settings.load_profile("lifeguard")

# A shell starts background jobs (of a CI, say) with SIGINT ignored, and every process below them
# inherits that. Tests that send a Ctrl-C to theirs mean one that is started as usual.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def pg() -> Iterator[Postgres]:
    """The PostgreSQL of this run: embedded, or the one of ``LIFEGUARD_DSN``."""
    with postgres() as server:
        yield server


@pytest.fixture
def appname(pg: Postgres, request: pytest.FixtureRequest) -> Iterator[str]:
    """An application_name of this test alone. At its end no connection may bear it any more.

    Names that start with it count as well: ``f"{appname}:bare"``.
    """
    test = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:32]
    name = f"{test}.{os.getpid()}.{next(_numbers)}."
    yield name
    if pg.wait_count(0, prefix=name) == 0:
        return
    with pg.connect() as connection:
        left = connection.execute(
            "SELECT pid, application_name, state, query, pg_terminate_backend(pid)"
            " FROM pg_stat_activity WHERE starts_with(application_name, %s)",
            [name],
        ).fetchall()
    lines = "\n".join(f"  pid {pid} {app} {state}: {query}" for pid, app, state, query, _ in left)
    pytest.fail(f"connections left behind (terminated now):\n{lines}", pytrace=False)


@pytest.fixture
def dsn(pg: Postgres, appname: str) -> str:
    """How to connect as this test: ``appname`` is in it."""
    return pg.named(appname)


@pytest.fixture
def eventlog(tmp_path: Path) -> Iterator[EventLog]:
    log = EventLog(tmp_path / "events.jsonl")
    yield log
    log.close()
