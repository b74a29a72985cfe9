"""The verdict can show failure: every broken promise of the guarded side is named."""

from __future__ import annotations

import pytest

from lifeguard.cli._demo.model import Sample, SideRun, Tally, judge


def side(name, *, ok=100, failed=0, wrong=0, peak=4, bound=6, held=0, left_over=0, broke=None):
    tally = Tally(ok=ok, failed=failed, wrong=wrong)
    samples = [Sample(0.0, peak, 0, 0)]
    return SideRun(
        name, bound, samples, tally, held=held, left_over=left_over, broke=broke, phase="over"
    )


def test_guarded_that_keeps_everything_is_ok_whatever_bare_does():
    bare, guarded = judge(side("bare", failed=20, wrong=3, held=6), side("guarded"))
    assert bare.kind == "fails"
    assert "3 wrong rows delivered" in bare.faults
    assert guarded.kind == "ok"


def test_bare_that_shows_nothing_is_called_so():
    bare, guarded = judge(side("bare"), side("guarded"))
    assert bare.kind == "survived"
    assert guarded.kind == "ok"


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"wrong": 1}, "1 wrong row delivered"),
        ({"peak": 7}, "7 connections, configured for 6"),
        ({"held": 2}, "2 connections held although no request runs"),
        ({"left_over": 1}, "1 connection left after the server ended"),
        ({"left_over": None}, "not measured to the end"),
        ({"ok": 0}, "not one request answered"),
        ({"broke": "the server ended at start"}, "the server ended at start"),
        ({"failed": 2, "ok": 98}, "2 failed requests"),
        ({"failed": 31, "ok": 9_000}, "31 failed requests, more than bare (30)"),
    ],
)
def test_guarded_that_breaks_a_promise_is_broken(broken, words):
    _, guarded = judge(side("bare", failed=30), side("guarded", **broken))
    assert guarded.kind == "broken"
    assert words in guarded.faults


def test_bare_doing_just_as_badly_is_no_excuse():
    _, guarded = judge(side("bare", wrong=50, failed=9), side("guarded", wrong=1))
    assert guarded.kind == "broken"


def test_a_stalled_machine_is_remarked_not_condemned():
    _, guarded = judge(side("bare", failed=30), side("guarded", ok=400, failed=3))
    assert guarded.kind == "ok"
    assert "3 failed requests" in guarded.text
