"""The judge of the storm sees what is broken, and forgives only what a SIGKILL did."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.storm.judge import GHOST, NEAR, complaints, judge
from tests.storm.storm import Attempt, Record
from tests.support.eventlog import Event

GOOD = Attempt("a", "ok", began=10.0, ended=10.1, answered=True)


def of(pid: int, *events: str, id: str = "a") -> list[Event]:
    units = ("started", "ended", "finished")
    return [Event(pid, 1, event, {"id": id} if event in units else {}) for event in events]


def served(pid: int = 1) -> list[Event]:
    return of(pid, "opened", "started", "ended", "finished", "closed")


def broken(events: list[Event], *attempts: Attempt, **known: Any) -> list[str]:
    return judge(Record("a server", attempts=list(attempts), **known), events).violations


def test_nothing_is_wrong_with_a_quiet_day() -> None:
    assert broken(served(), GOOD) == []


def test_pool_that_was_not_closed() -> None:
    """It is a violation, unless its process got a SIGKILL."""
    events = of(1, "opened")
    assert broken(events, told={1: "SIGTERM"}) == ["process 1 closed its pool never (SIGTERM)"]
    assert broken(events, killed={1: 10.0}) == []


def test_pool_that_was_opened_or_closed_twice() -> None:
    assert len(broken(of(1, "opened", "closed", "closed"))) == 1
    assert len(broken(of(1, "opened", "opened", "closed"))) == 1
    assert len(broken(of(1, "closed"))) == 1
    assert len(broken(of(1, "opened", "closed", "closed"), killed={1: 10.0})) == 1


def test_unit_that_did_not_end_once() -> None:
    events = of(1, "opened", "started", "ended", "closed")
    assert len(broken(events, GOOD)) == 1
    assert broken(events, GOOD, killed={1: 10.0}) == []
    assert len(broken([*served(), *of(1, "finished")], GOOD)) == 1


def test_request_that_failed_in_a_process() -> None:
    """The process that held it was killed, or it is a violation: no other end excuses it."""
    failed = replace(GOOD, error="ConnectionResetError()", answered=False)
    assert len(broken(served(), failed, gone={1: 10.0})) == 1
    assert len(broken(served(), failed, killed={2: 10.0})) == 1
    assert broken(served(), failed, killed={1: 10.0}) == []


def test_request_that_was_refused() -> None:
    """An answer that says no is a violation, also beside a killed process."""
    refused = replace(GOOD, id="b", error="503 'closing'")
    assert len(broken(served(), refused, gone={1: 10.0}, killed={2: 10.0})) == 1


def test_request_that_nobody_read() -> None:
    """It is forgiven beside a process that left, once the client has asked again."""
    unread = replace(GOOD, id="b", error="RemoteDisconnected()", answered=False)
    assert len(broken(served(), unread)) == 1
    assert len(broken(served(), unread, killed={2: unread.ended + 2 * NEAR})) == 1
    assert broken(served(), unread, gone={2: unread.ended}) == []
    assert broken(served(), unread, killed={2: unread.began}) == []
    assert len(broken(served(), unread, gone={2: unread.ended}, given_up=[unread])) == 1


def test_connections() -> None:
    """Too many, after their process, or left at the end: each is a violation."""
    record = Record("a server", left_connections=1, left_processes=[1])
    record.samples.over.append("process 1 had 3 connections")
    record.samples.ghost = GHOST + 1
    assert len(judge(record, []).violations) == 4


def test_complaints_of_postgresql() -> None:
    """Its log names the process. Of those that got a SIGKILL nothing else is to be expected."""
    log = (
        "12:00 [7] storm.a.1. LOG:  unexpected EOF on client connection with an open transaction\n"
        "12:00 [8] storm.a.12. LOG:  unexpected EOF on client connection\n"
        "12:00 [9] storm.b.3. FATAL:  connection to client lost\n"
        "12:00 [9] storm.a.4. LOG:  checkpoint\n"
    )
    assert len(complaints(log, "storm.a.", [])) == 2
    [line] = complaints(log, "storm.a.", [1])
    assert "storm.a.12." in line
    assert len(complaints(log, "storm.b.", [1, 12])) == 1
