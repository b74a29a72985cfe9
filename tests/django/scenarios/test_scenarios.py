"""Every way in which Django under ASGI is known to lose connections, on five servers.

One process serves all rows of one server and one setting, one after another, with the garbage
collector switched off. After each row nothing may be left: no connection beyond those that may
stay, no request that did not finish exactly once, and as many requests at once are served as
there are lanes. What a row leaves behind therefore shows in it or in one of those after it.

The bare half shows that the rows can fail: the same project without lifeguard.
"""

from __future__ import annotations

import re

import pytest

from tests.django.scenarios.serving import LANES, Answer, Site
from tests.django.scenarios.table import ROWS
from tests.servers.rows import ROOT


def test_the_documentation_has_the_same_rows() -> None:
    text = (ROOT / "docs" / "django_scenarios.md").read_text()
    documented = re.findall(r"^\| (\d\w?) \|", text, re.MULTILINE)
    assert sorted(documented) == sorted(row.split()[0] for row in ROWS if row[0] != "+")


@pytest.mark.parametrize("row", ROWS)
def test_guarded(site: Site, row: str) -> None:
    """Whatever the clients do, the connections stay few, and everybody is served afterwards."""
    ROWS[row](site)
    site.is_whole()


@pytest.mark.parametrize("bare_site", ["for a minute"], indirect=True)
def test_bare_requests_keep_a_connection_each(bare_site: Site) -> None:
    """CONN_MAX_AGE=60: no connection is used again, and all of them stay."""
    answers = bare_site.ask_all(["plain"] * 20, at_once=5)
    assert [answer.status for answer in answers] == [200] * 20
    assert bare_site.unfinished() == {}
    assert bare_site.connections(LANES) == 20


@pytest.mark.parametrize("bare_site", ["nothing"], indirect=True)
def test_bare_threads_keep_a_connection_each(bare_site: Site) -> None:
    """CONN_MAX_AGE=0: a thread that no request ends in keeps its connection."""
    assert bare_site.ask("to-thread").status == 200
    assert bare_site.unfinished() == {}
    assert bare_site.connections(0) >= 1


@pytest.mark.parametrize("bare_site", ["nothing"], indirect=True)
@pytest.mark.parametrize("path", ["astream-raises", "cancelled"])
def test_bare_requests_that_do_not_finish(bare_site: Site, path: str) -> None:
    """CONN_MAX_AGE=0: Django does not say that these requests are over."""
    requests = [bare_site.new_id() for _ in range(3)]
    for request in requests:
        bare_site.ask(path, request)
    assert bare_site.unfinished() == dict.fromkeys(requests, (1, 0))
    assert bare_site.connections(0) == 3


@pytest.mark.parametrize("bare_site", ["in a pool"], indirect=True)
def test_bare_streams_that_raise_use_the_pool_up(bare_site: Site) -> None:
    """As many of them as the pool is large, and nobody is served any more."""
    assert bare_site.meets() == [Answer(200, "met")] * LANES
    for _ in range(LANES):
        bare_site.ask("astream-raises")
    assert [bare_site.ask("plain").status for _ in range(2)] == [500, 500]


@pytest.mark.parametrize("bare_site", ["nothing"], indirect=True)
def test_bare_tasks_that_outlive_their_request(bare_site: Site) -> None:
    """CONN_MAX_AGE=0: each of them leaves a connection, and a thread."""
    requests = [bare_site.new_id() for _ in range(4)]
    for request in requests:
        assert bare_site.ask("background", request).status == 200
        bare_site.wait_for("finished", request)
    for request in requests:
        bare_site.open_gate(request)
        bare_site.wait_for("background", request)
    assert bare_site.connections(0) == 4
