"""The table: what clients do, and what the server has to do with it. Each row is a function.

The numbers are those of docs/django_scenarios.md. After each row the caller looks at what is left.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from tests.django.scenarios import serving
from tests.django.scenarios.serving import LANES, Answer, Site
from tests.servers.harness import reset

ROWS: dict[str, Callable[[Site], None]] = {}


def row(number: str) -> Callable[[Callable[[Site], None]], Callable[[Site], None]]:
    def register(func: Callable[[Site], None]) -> Callable[[Site], None]:
        name = func.__name__.replace("_", " ")
        ROWS[f"{number} {name}"] = func
        return func

    return register


def statuses(answers: list[Answer]) -> set[int]:
    return {answer.status for answer in answers}


@row("1")
def many_at_once(site: Site) -> None:
    answers = site.ask_all(["plain", "aplain"] * 30, at_once=20)
    assert statuses(answers) == {200}
    if site.keeps != "nothing":  # there the connections before are still leaving
        assert max(int(answer.body) for answer in answers) <= LANES


@row("1b")
def one_after_another(site: Site) -> None:
    assert statuses(site.ask_all(["plain", "aplain"] * 6, at_once=1)) == {200}


@row("2")
def sync_view_whose_client_leaves(site: Site) -> None:
    for _ in range(2):
        request = site.ask_and_leave("waits")
        site.open_gate(request)
        site.wait_for("left", request)


@row("3")
def async_view_whose_client_leaves(site: Site) -> None:
    for _ in range(3):
        request = site.ask_and_leave("awaits")
        if not site.listens:
            site.open_gate(request)
        site.wait_for("left", request)  # otherwise Django has cancelled the view


# Before 5b: daphne 4.2 stumbles over the first app that fails in mid-response, and cancels none
# from then on.
@row("9")
def requests_that_the_server_cancels(site: Site) -> None:
    """Where the server does not cancel them, the views run on without their clients."""
    requests = [site.ask_and_leave(path) for path in ("waits", "waits")]
    if site.cancels:
        for request in requests:
            site.wait_for("cancelled", request)
    for request in requests:
        site.open_gate(request)
        site.wait_for("left", request)
        site.wait_for("finished", request)
        events = [event.event for event in site.of(request)]
        assert events[-1] == "finished"  # after the view's last query, also of a cancelled request


@row("4c")
def raw_threads(site: Site) -> None:
    assert statuses(site.ask_all(["raw-thread"] * 8, at_once=4)) == {200}


@row("5a")
def streams(site: Site) -> None:
    for path in ("stream", "astream"):
        answers = site.ask_all([path] * 6, at_once=3)
        assert {(answer.status, answer.body.count("\n")) for answer in answers} == {(200, 5)}
        for _ in range(2):
            request = site.ask_and_leave(f"{path}?stays=1")
            site.open_gate(request)


@row("5b")
def async_streams_that_raise(site: Site) -> None:
    # daphne neither ends such a response nor hangs up.
    for answer in site.ask_all(["astream-raises"] * 6, at_once=6, patience=2):
        assert answer.body.count("\n") in (0, 1)


@row("6c")
def open_tabs(site: Site) -> None:
    """Twelve open tabs, and everybody else is served, in about the same time."""
    for _ in range(12):
        without = site.seconds("plain", 12)
        with contextlib.ExitStack() as stack:
            tabs = [stack.enter_context(site.asking("events")) for _ in range(3 * LANES)]
            assert site.connections(site.allowed()) <= site.allowed()  # the tabs hold none
            beside = site.seconds("plain", 12)
            for request, client in tabs:
                site.open_gate(request)
                reset(client)
        ratio = serving.median(beside) / serving.median(without)
        if ratio <= 2:
            return
        site.is_whole()  # another process may have had the processor: measure again
    raise AssertionError(f"beside open tabs, requests took {ratio:.1f} x as long")


@row("+")
def server_side_cursors(site: Site) -> None:
    """More of them at once than there are lanes, and each stays with its connection."""
    answers = site.ask_all(["cursor"] * 3 * LANES, at_once=3 * LANES)
    assert statuses(answers) == {200}
    assert len({answer.body for answer in answers}) == 1 and int(answers[0].body) >= 3


@row("+")
def transactions_across_calls(site: Site) -> None:
    answers = site.ask_all(["transactions"] * 3 * LANES, at_once=3 * LANES)
    assert answers == [Answer(200, "1")] * 3 * LANES


@row("7a")
def exceptions(site: Site) -> None:
    paths = ["raises", "araises", "middleware-raises", "async-middleware-raises"] * 3
    assert statuses(site.ask_all(paths, at_once=4)) == {500}


@row("7b")
def bodies_that_are_cut_off(site: Site) -> None:
    for _ in range(4):
        site.post("upload", b"abc", length=100)


@row("7c")
def bodies_that_are_too_large(site: Site) -> None:
    for _ in range(4):
        assert site.post("upload", b"x" * 2000).split()[1] in (b"400", b"413")


@row("7d")
def orm_outside_of_django(site: Site) -> None:
    assert statuses(site.ask_all(["outer"] * 8, at_once=4)) == {200}


@row("7e")
def views_that_raise_cancelled(site: Site) -> None:
    for answer in site.ask_all(["cancelled"] * 6, at_once=6, patience=2):  # daphne is silent
        assert answer.status != 200


@row("8")
def tasks_that_outlive_their_request(site: Site) -> None:
    requests = [site.new_id() for _ in range(2 * LANES)]
    for request in requests:
        assert site.ask("background", request).status == 200
        site.wait_for("finished", request)
    for request in requests:
        site.open_gate(request)
    for request in requests:
        site.wait_for("background", request)


# The threads of these two live on, and may keep a connection each for CONN_MAX_AGE seconds.


@row("4a")
def to_thread(site: Site) -> None:
    site.threads += min(32, (os.cpu_count() or 1) + 4)
    assert statuses(site.ask_all(["to-thread"] * 6, at_once=2)) == {200}


@row("4b")
def executor_of_a_module(site: Site) -> None:
    site.threads += 8
    assert statuses(site.ask_all(["module-executor"] * 4, at_once=2)) == {200}
