"""Channels: a unit for each message, and lanes instead of one thread for the whole process.

Without lifeguard the sync work of all websockets of a process is done by one thread, one message
after the other; and consumers that leave that thread keep a connection for each open tab. The bare
side of that is in here as well.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.django.channels.conftest import Start
from tests.django.channels.serving import LANES, WITHIN, Site
from tests.support.eventlog import Event

CONSUMERS = ["sync", "async", "own-context"]
TABS = 20


# -- without lifeguard ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["sync", "async"])
def test_bare_consumers_wait_for_each_other(bare_site: Site, path: str) -> None:
    """Two messages of two websockets, each of which waits for the other one: neither gets on."""
    with bare_site.tabs(path, path) as tabs:
        for tab in tabs:
            tab.send("meet", at=path, parties=2, timeout=1)
        assert [tab.receive()["met"] for tab in tabs] == [False, False]


def test_bare_consumers_in_contexts_of_their_own_keep_a_connection_for_each_tab(
    bare_site: Site,
) -> None:
    """The usual way out. Every open tab that has asked once has a connection, and so on."""
    before = bare_site.left(0)
    with bare_site.tabs(*["own-context"] * TABS) as tabs:
        for tab in tabs:
            tab.ask("query")
        assert bare_site.left(before) >= TABS


@pytest.mark.parametrize("keeps", ["for a minute"])
def test_bare_consumers_leave_what_their_tasks_opened(start: Start, keeps: str) -> None:
    """What goes on when the websocket has closed opens a connection that nobody closes."""
    site = start("uvicorn", keeps, bare=True)
    outlive(site, ["own-context"] * 3)
    assert site.left(1) > 1


# -- with it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONSUMERS)
def test_consumers_work_at_the_same_time(site: Site, path: str) -> None:
    """As many messages as there are lanes, each of which waits for all the others."""
    with site.tabs(*[path] * LANES) as tabs:
        for tab in tabs:
            tab.send("meet", at=f"lanes {path}", parties=LANES, timeout=WITHIN)
        answers = [tab.receive() for tab in tabs]
    assert all(answer["met"] for answer in answers)
    assert len({answer["thread"] for answer in answers}) == LANES


@pytest.mark.parametrize("path", CONSUMERS)
def test_a_message_is_a_unit(site: Site, path: str) -> None:
    """What a message asked lifeguard to do runs at its end, and not when the tab closes."""
    on = f"{path} {site.application_name}"
    with site.tab(path) as tab:
        for n in range(3):
            assert tab.ask("unit", n=n, on=on) == {"n": n}
        events = site.events.wait(
            lambda events: sum(e.event == "ended" and e["on"] == on for e in events) == 3,
            "handled",
            "ended",
        )
        seen = [(event.event, event["n"]) for event in events if event["on"] == on]
        assert seen == [(name, n) for n in range(3) for name in ("handled", "ended")]


@pytest.mark.parametrize("path", CONSUMERS)
def test_open_tabs_hold_nothing(site: Site, path: str) -> None:
    """Thirty tabs that have asked several times, while they are open and when they are closed."""
    with site.tabs(*[path] * TABS) as tabs:
        for _ in range(2):
            for tab in tabs:
                tab.send("query")
            assert [tab.receive() for tab in tabs] == [{"users": 2, "user": "ann"}] * TABS
        assert site.left() <= site.allowed()
    site.is_whole()


def test_a_thousand_open_websockets_hold_nothing(site: Site) -> None:
    """Each of them has asked the database once. (A hundred, but for one site: it takes a while.)"""
    number = 1000 if (site.row.name, site.keeps) == ("uvicorn", "nothing") else 100

    async def main() -> int:
        async with site.crowd(number, "anonymous") as answers:
            assert answers == [{"users": 2, "user": ""}] * number
            return await asyncio.to_thread(site.left)

    assert asyncio.run(main()) <= site.allowed()


@pytest.mark.parametrize("path", CONSUMERS)
def test_a_message_that_fails_leaves_nothing(site: Site, path: str) -> None:
    """Channels closes such a websocket. The others go on."""
    with site.tabs(*[path] * 6, "sync") as tabs:
        *failing, other = tabs
        for tab in failing:
            tab.send("fail")
        assert all(tab.is_cut_off() for tab in failing)
        assert other.ask("query")["users"] == 2
    site.is_whole()


@pytest.mark.parametrize("path", CONSUMERS)
def test_a_consumer_may_ask_the_database_when_its_tab_has_closed(site: Site, path: str) -> None:
    names = [site.new_id() for _ in range(6)]
    with site.tabs(*[path] * 6) as tabs:
        for tab, name in zip(tabs, names, strict=True):
            tab.ask("query", name=name)
    happened(site, "left", names)
    site.is_whole()


@pytest.mark.parametrize("path", ["async", "own-context"])
def test_tasks_that_outlive_their_websocket_leave_nothing(site: Site, path: str) -> None:
    """They still get an answer from the database, on the lanes."""
    outlive(site, [path] * 10)
    site.is_whole()


def outlive(site: Site, paths: list[str]) -> None:
    """Tasks that ask the database, wait until their websocket is closed, and ask it again."""
    names = [site.new_id() for _ in paths]
    with site.tabs(*paths) as tabs:
        for tab, name in zip(tabs, names, strict=True):
            assert tab.ask("outlive", name=name) == {"started": True}
    happened(site, "outlived", names)


def happened(site: Site, event: str, names: list[str]) -> None:
    """Wait until it did, to each of these once, and each had its answer from the database."""

    def of(events: list[Event]) -> list[Event]:
        return [event for event in events if event["name"] in names]

    events = of(site.events.wait(lambda events: len(of(events)) >= len(names), event))
    assert sorted(event["name"] for event in events) == sorted(names)
    assert {event["users"] for event in events} == {2}


def test_closed_tabs_leave_no_consumers_behind(site: Site) -> None:
    """Python frees a consumer when its websocket is over, without its garbage collector."""
    with site.tab("async") as tab:
        before = tab.ask("alive")["alive"]
        with site.tabs(*["async"] * 10) as tabs:
            assert [other.ask("query")["users"] for other in tabs] == [2] * 10
            assert tab.ask("alive")["alive"] == before + 10
        deadline = time.monotonic() + WITHIN
        while tab.ask("alive")["alive"] > before:
            assert time.monotonic() < deadline, "they are still there"


# -- as it was ------------------------------------------------------------------------------------


def test_groups_get_each_message_once_and_in_order(site: Site) -> None:
    """From a consumer of either kind, and from a page."""
    with site.tabs("sync", "async", "own-context", "sync") as tabs:
        for tab in tabs:
            assert tab.ask("join", room="room") == {"joined": "room"}
        tabs[0].send("say", room="room", text="one")
        assert [tab.receive()["text"] for tab in tabs] == ["one"] * 4
        tabs[1].send("say", room="room", text="two")
        assert [tab.receive()["text"] for tab in tabs] == ["two"] * 4
        assert site.say("room", "three") == "2"
        assert [tab.receive() for tab in tabs] == [{"text": "three", "users": 2}] * 4
    site.is_whole()


@pytest.mark.parametrize("path", CONSUMERS)
def test_a_transaction_has_one_connection_to_its_end(site: Site, path: str) -> None:
    with site.tabs(*[path] * 8) as tabs:
        for tab in tabs:
            tab.send("transfer")
        assert [tab.receive() for tab in tabs] == [{"together": True}] * 8


@pytest.mark.parametrize("path", ["async", "own-context"])
def test_calls_of_one_message_share_a_thread(site: Site, path: str) -> None:
    """``asyncio.gather`` of ``database_sync_to_async`` calls: one thread, one after the other."""
    with site.tab(path) as tab:
        assert tab.ask("gather") == {"threads": 1}


def test_each_tab_has_its_own_user(site: Site) -> None:
    with site.tab("sync", "ann") as first, site.tab("async", "bob") as second:
        assert first.ask("query")["user"] == "ann"
        assert second.ask("query")["user"] == "bob"


# -- the end --------------------------------------------------------------------------------------


def test_the_server_ends_with_tabs_open(site: Site) -> None:
    """The last test of each site. Nothing holds it up, and nothing is left."""
    with site.tabs("sync", "async", "own-context") as tabs:
        for tab in tabs:
            tab.ask("query")
        site.terminate()
        assert site.pg.wait_count(0, application_name=site.application_name) == 0
