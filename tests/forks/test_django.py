"""What Django has open when a process forks, in all the places where it keeps it: other threads,
transactions, lanes, native pools, and whatever the app holds in a variable.

One program per Django runs all scenarios, and the tests read what it wrote.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest

from lifeguard.testing import Postgres
from tests.django.versions import HERE, OTHERS, python_path
from tests.forks.conftest import ROOT, Start
from tests.support.eventlog import ENV, EventLog
from tests.support.overlay import overlay

CODE = "from tests.forks.apps import django_child; django_child.main()"
SCENARIOS = {
    "another_threads_transaction": {"same": True, "apart": True, "goes on": True},
    "forked_by_a_thread": {"same": True, "apart": True},
    "a_transaction": {"same": True, "child": [False, [], False], "done": True},
    "asgirefs_thread": {"same": True, "apart": True},
    "a_lock": {"same": True, "apart": True},
    "noticed_late": {"same": True, "apart": True},
    "a_lane": {"same": True, "apart": True, "lanes": [True, 0]},
}
ENDS = ["the_end_of_a_child", "the_end_of_a_child_with_a_worker"]
OLDEST = OTHERS[:1]  # the newest one is that of the environment
DRIVERS = [HERE, *OLDEST, "psycopg2"]

Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module", params=DRIVERS)
def found(
    request: pytest.FixtureRequest,
    pg_without_tls: Postgres,
    tmp_path_factory: pytest.TempPathFactory,
) -> Found:
    """What each scenario found, with this Django or driver."""
    log = EventLog(tmp_path_factory.mktemp("django") / "events.jsonl")
    driver = "psycopg2" if request.param == "psycopg2" else ""
    name = f"forks-{request.param}"
    try:
        done = subprocess.run(
            [sys.executable, "-c", CODE, *SCENARIOS, "what_somebody_holds", *ENDS],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": f"{overlay(driver)}:{ROOT}" if driver else python_path(request.param),
                "APP_DRIVER": driver,
                "APP_DSN": pg_without_tls.named(name),
                ENV: str(log.path),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert log.count("over") == 1, done.stderr
        assert pg_without_tls.wait_count(0, prefix=name) == 0
        return {event.extra.pop("scenario"): event.extra for event in log.read("found")}
    finally:
        log.close()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_parent_and_child_have_backends_of_their_own(scenario: str, found: Found) -> None:
    """The child's queries are answered, by other backends than the parent's; the parent goes on
    with the very same ones, and with its transaction."""
    assert found[scenario] == SCENARIOS[scenario]


def test_what_somebody_holds_from_before(found: Found, request: pytest.FixtureRequest) -> None:
    """A wrapper in a variable connects anew. The driver's own connection and its cursors do not:
    they say whose they are."""
    held = found["what_somebody_holds"]
    assert held["same"] and held["apart"]
    assert len(held["said"]) == 2
    if "psycopg2" not in request.node.name:  # whose connections can only be cut off
        assert held["closed"] is True
        said = (
            "WrongProcessError: this connection of Django's database 'default' (made at DATABASES"
        )
        assert all(text.startswith(said) for text in held["said"]), held["said"]
        assert all("belongs to process" in text for text in held["said"])


@pytest.mark.parametrize("scenario", ENDS)
def test_a_child_closes_what_it_has_opened(scenario: str, found: Found) -> None:
    """A child of multiprocessing, which ends by os._exit(): outside of every unit, without a
    worker and with one."""
    assert found[scenario] == {"closed": ["default", "native"], "status": 0}


@pytest.mark.parametrize("bare", [True, False])
def test_a_parent_that_is_killed(bare: bool, start: Start, pg: Postgres) -> None:
    """Its backends end with it although its child lives on: that one has let their sockets go.
    (Bare, they stay as long as the child does.)"""
    program = start(
        "-c", CODE, "a_parent_that_is_killed", APP_BARE="1" if bare else "", APP_DRIVER=""
    )
    events = program.log.wait(bool, "look", timeout=60)
    assert events, program.said()
    with pg.connect() as watcher:
        alive = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)"

        def count() -> int:
            row = watcher.execute(alive, [events[0]["backends"]]).fetchone()
            assert row is not None
            return int(row[0])

        deadline = time.monotonic() + (1 if bare else 30)
        while count() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert bool(count()) is bare
    program.log.write("looked")
    assert program.wait() == 0, program.said()
