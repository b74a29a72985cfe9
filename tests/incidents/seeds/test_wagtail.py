"""wagtail/wagtail#12112: a Wagtail site on granian keeps its connections, until there are no more.

The cause was in granian (granian#306): up to 1.4 the end of a response is announced to the wrong
object, or in a thread that has no connection to close. Today it is announced where it should be,
and what is left is told of threads that granian ends when they were idle: with CONN_MAX_AGE, each
takes the way to its connection with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lifeguard.testing import Postgres
from tests.incidents.seeds.deploying import (
    Answer,
    Database,
    Deployment,
    Process,
    asking,
    at_a_time,
    copied,
    database,
    deployed,
    failed,
    failures,
)
from tests.support.overlay import missing_because, overlay

SETTINGS = "tests.incidents.seeds.wagtail_site.settings"
THREADS, CLIENTS, LIMIT = 8, 16, 30
SERVER = (
    "granian tests.incidents.seeds.wagtail_site.wsgi:application --interface wsgi"
    f" --host 127.0.0.1 --port {{port}} --workers 1 --blocking-threads {THREADS}"
)
PATHS = (
    "/article-3/",
    "/api/v2/pages/",
    "/api/v2/pages/?type=wagtail_site.Article&fields=*",
    "/api/v2/images/",
    "/api/v2/documents/",
    "/api/v2/redirects/",
)

pytestmark = pytest.mark.timeout(300)  # Wagtail is installed for the first of these tests


@pytest.fixture(scope="module")
def site(pg: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """The database of a site with a few pages. Its owner may have 30 connections."""
    with database(pg, "wagtail", limit=LIMIT) as db:
        with deploy(db, tmp_path_factory.mktemp("site"), guarded=False) as side:
            side.manage("migrate --run-syncdb --verbosity 0")
            side.manage("publish")
        yield db


def deploy(
    db: Database, directory: Path, *, guarded: bool, granian: str | None = None, age: int = 0
) -> Deployment:
    overlays = [overlay(name) for name in (granian, "wagtail") if name]
    return deployed(
        SETTINGS,
        db,
        directory,
        guarded=guarded,
        overlays=tuple(overlays),
        SEED_CONN_MAX_AGE=str(age),
    )


def browse(server: Process, times: int, clients: int = CLIENTS) -> list[Answer]:
    jobs = [asking(path) for path in PATHS * times]
    return asyncio.run(at_a_time(clients, jobs, server.port))


def leaking(name: str) -> object:
    reason = missing_because(name)
    return pytest.param(name, marks=pytest.mark.skipif(reason is not None, reason=reason or ""))


@pytest.mark.parametrize("granian", [leaking("granian132"), leaking("granian144")])
def test_seed_wagtail(granian: str, site: Database, tmp_path: Path) -> None:
    """Bare, eight threads take all thirty connections that there are, and visitors get a 500.

    Guarded, there are as many as threads, and none when nobody asks for anything.
    """
    for guarded in (False, True):
        with deploy(site, tmp_path, guarded=guarded, granian=granian) as side:
            server = side.serve(SERVER, workers=1)
            with site.watched() as peak:
                answers = browse(server, 40)
            if not guarded:
                assert peak.connections == LIMIT, server.said()
                assert failed(answers) > 0
                assert site.wait_at_most(THREADS, timeout=2) > THREADS
            else:
                assert failures(answers) == {}, server.said()
                # A backend leaves a moment after its client: there may be one such for each thread.
                assert peak.connections <= 2 * THREADS
                assert site.wait_at_most(0) == 0
        assert site.wait_at_most(0) == 0


def test_seed_wagtail_on_a_granian_that_closes(site: Database, tmp_path: Path) -> None:
    """The current granian needs no help with CONN_MAX_AGE=0, and being guarded costs nothing."""
    for guarded in (False, True):
        with deploy(site, tmp_path, guarded=guarded) as side:
            server = side.serve(SERVER, workers=1)
            with site.watched() as peak:
                assert failures(browse(server, 20)) == {}, server.said()
            assert peak.connections <= 2 * THREADS
            assert site.wait_at_most(0) == 0
            assert server.ends_within(20), server.said()


def test_seed_wagtail_with_threads_that_end_when_they_are_idle(
    site: Database, tmp_path: Path
) -> None:
    """Bare, each burst of visitors leaves the connections of its threads stranded.

    Guarded, a thread that granian ends takes its connection with it.
    """
    server = f"{SERVER} --blocking-threads-idle-timeout 5"
    with (
        copied(site) as a,
        copied(site) as b,
        deploy(a, tmp_path, guarded=False, age=600) as bare,
        deploy(b, tmp_path, guarded=True, age=600) as guarded,
        b.watched() as guarded_peak,
    ):
        servers = [side.serve(server, workers=1) for side in (bare, guarded)]
        threads = [threads_after_one_request(one) for one in servers]
        left = []
        for _ in range(2):
            for one in servers:
                assert failures(browse(one, 8)) == {}, one.said()
            for one, few in zip(servers, threads, strict=True):
                wait_until_threads_have_ended(one, few)
            left.append((a.count(), b.wait_at_most(1)))
        (bare_first, _), (bare_last, _) = left
        assert bare_last > bare_first
        assert bare_last > THREADS
        assert [count for _, count in left] == [1, 1], "the thread that stays has one"
        assert guarded_peak.connections <= THREADS + 1


def threads_after_one_request(server: Process) -> int:
    assert failures(browse(server, 1, clients=1)) == {}, server.said()
    [worker] = server.workers()
    return worker.num_threads()


def wait_until_threads_have_ended(server: Process, few: int) -> None:
    """Until granian has ended the threads of a burst, which it does when they were idle for 5 s."""
    [worker] = server.workers()
    deadline = time.monotonic() + 40
    while worker.num_threads() > few:
        assert time.monotonic() < deadline, f"{worker.num_threads()} threads"
        time.sleep(0.1)
