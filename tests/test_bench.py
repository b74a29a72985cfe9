"""The bench: its verdicts can go either way, it compares what it says, and it runs."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import pytest
import typer
from typer.testing import CliRunner

from bench import __main__ as command
from bench import celery, django, imports
from bench._client import client
from bench._measure import Plan, Run, Sample, Variant, interleave
from bench._report import Group, Target, as_json, divide, verdict
from lifeguard.testing import Postgres

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.timeout(300)


def group_with(*targets: Target) -> Group:
    return Group("g", "a group", "ns", targets=list(targets))


MET = Target("fast enough", "a / b", 0.5, 0.6)
AT_THE_LIMIT = Target("just", "a / b", 0.6, 0.6)
MISSED = Target("too slow", "a / b", 0.61, 0.6)
UNKNOWN = Target("noise", "a / b", math.nan, 0.6)


@pytest.mark.parametrize(
    ("target", "met"), [(MET, True), (AT_THE_LIMIT, True), (MISSED, False), (UNKNOWN, False)]
)
def test_a_target_is_met_at_or_under_its_limit(target: Target, met: bool) -> None:
    assert target.met is met
    assert verdict([group_with(target)]) is met


def test_one_missed_target_of_many_is_a_missed_run() -> None:
    assert verdict([group_with(MET), group_with(MET, AT_THE_LIMIT)])
    assert not verdict([group_with(MET), group_with(MET, MISSED)])


def test_a_run_without_targets_has_met_nothing() -> None:
    assert not verdict([])
    assert not verdict([group_with()])


def test_added_and_ratio_are_of_the_minima() -> None:
    group = Group("g", "a group", "ns")
    samples = {
        "bare": Sample([100.0, 900.0, 110.0]),
        "ours": Sample([160.0, 150.0, 700.0]),
        "theirs": Sample([300.0, 800.0, 900.0]),
    }
    group.add(samples, bare="bare", yardstick="theirs")
    assert group.row("bare").added is None
    assert group.added("ours") == 50
    assert group.row("ours").median == 160
    assert group.row("ours").ratio == group.added_ratio("ours", "theirs") == 0.25


def test_a_ratio_to_noise_is_no_result() -> None:
    assert math.isnan(divide(1.0, 0.0))
    assert math.isnan(divide(1.0, -3.0))


def test_the_report_is_json_also_when_a_figure_is_missing() -> None:
    report = as_json([group_with(UNKNOWN, MET)], {"rounds": 1})
    text = json.dumps(report, allow_nan=False)
    unknown, met = json.loads(text)["groups"]["g"]["targets"]
    assert unknown["measured"] is None
    assert unknown["met"] is False
    assert met["met"] is True


def test_every_round_measures_every_variant_in_turn(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def named(name: str, took: int) -> Variant:
        def prepare(stack: ExitStack) -> Run:
            def run(count: int) -> int:
                if count == 10:  # warm-ups before a timing are shorter
                    with log.open("a") as file:
                        file.write(name)
                return took * count

            stack.callback(lambda: log.with_suffix("." + name).touch())
            return run

        return Variant(name, prepare)

    samples = interleave([named("a", 2), named("b", 5)], rounds=3, inner=10)
    assert log.read_text() == "aaaaabbbbb" + "ababab"
    assert {name: sample.values for name, sample in samples.items()} == {
        "a": [2.0, 2.0, 2.0],
        "b": [5.0, 5.0, 5.0],
    }
    # Each variant's process was ended in order: what it left on its stack was closed.
    assert log.with_suffix(".a").exists()
    assert log.with_suffix(".b").exists()


def test_a_variant_that_fails_fails_the_run_with_its_traceback() -> None:
    def prepare(stack: ExitStack) -> Run:
        raise ZeroDivisionError("the reason")

    def fine(stack: ExitStack) -> Run:
        return lambda count: count

    with pytest.raises(RuntimeError, match=r"(?s)'broken' failed.*ZeroDivisionError: the reason"):
        interleave([Variant("fine", fine), Variant("broken", prepare)], rounds=1, inner=1)


def test_two_variants_of_one_name_are_refused() -> None:
    def prepare(stack: ExitStack) -> Run:
        return lambda count: count

    with pytest.raises(ValueError, match="the same name"):
        interleave([Variant("same", prepare), Variant("same", prepare)], rounds=1, inner=1)


def test_dear_and_foreign_modules_are_told_from_our_own() -> None:
    loaded = {"lifeguard", "lifeguard._core.unit", "contextvars", "asyncio.tasks", "anyio._core"}
    assert imports.forbidden(loaded) == ["anyio._core", "asyncio.tasks"]
    assert imports.forbidden({"lifeguard", "threading"}) == []


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def test_the_command_prints_verdicts_and_stores_the_figures(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "bench.json"
    ran = bench("--quick", "--rounds", "20", "--only", "task", "--json", str(path))
    assert ran.returncode == 0, ran.stderr
    assert "lifeguard.task" in ran.stdout
    report = json.loads(path.read_text())
    assert report["settings"] == {"rounds": 2, "quick": True, "groups": ["task"]}
    assert report["machine"]["cpu"]
    assert report["machine"]["cores"] >= 1
    assert report["python"].split()[1] == ".".join(map(str, sys.version_info[:3]))
    assert {"lifeguard-pool", "svcs", "dishka", "werkzeug"} <= report["packages"].keys()
    group = report["groups"]["task"]
    for row in group["rows"]:
        assert 0 < row["minimum"] <= row["median"]
    (target,) = group["targets"]
    assert target["limit"] == 600
    assert target["measured"] > 0
    assert target["met"] is (target["measured"] <= 600)


@pytest.mark.parametrize(
    ("target", "options", "code"),
    [(MET, ["--check"], 0), (MISSED, ["--check"], 1), (UNKNOWN, ["--check"], 1), (MISSED, [], 0)],
)
def test_check_exits_1_if_and_only_if_a_target_is_missed(
    target: Target,
    options: list[str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = ModuleType("found")
    found.measure = lambda plan: group_with(target)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "found", found)
    monkeypatch.setattr(command, "GROUPS", {"g": "found"})
    app = typer.Typer()
    app.command()(command.main)
    ran = CliRunner().invoke(app, [*options, "--json", str(tmp_path / "bench.json")])
    assert ran.exit_code == code, ran.output
    words = " ".join(ran.output.split())
    assert ("not met" in words) is not target.met


def test_the_django_group_measures_every_way_to_serve(
    pg: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short run on the suite's own server: nothing fails, and lanes bound the connections."""
    monkeypatch.setenv("LIFEGUARD_DSN", pg.dsn)
    monkeypatch.setattr(django, "CONNECTIONS", (3,))
    group = django.measure(Plan(rounds=1, quick=True))
    names = [row.name for row in group.rows]
    sites = [site for view in ("sync", "async") for site in django.SITES if view in site.views]
    assert [name.rpartition(": ")[2] for name in names] == [site.name for site in sites]
    for row in group.rows:
        assert row.minimum > 0
        assert row.more["p99 ms"] > 0
    measured = {(target.name, target.of): target for target in group.targets}
    for view in ("sync", "async"):
        lanes = f"tcp, scram, {view} view, lanes"
        assert measured[lanes, "errors"].measured == 0, group.notes
        assert measured[lanes, "most connections"].met
        assert 0 < measured[lanes, "CPU / Django's default"].measured < 1
    assert pg.wait_count(0, prefix="bench ") == 0
    json.dumps(as_json([group], {}), allow_nan=False)


def test_the_celery_group_measures_each_kind_of_task(
    pg: Postgres, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A short run on the suite's own server: a kept connection is cheaper than a new one."""
    monkeypatch.setenv("LIFEGUARD_DSN", pg.named("bench celery"))
    report = tmp_path / "bench.json"  # by a process of its own: it sets up Django
    ran = bench("--only", "celery", "--quick", "--rounds", "1", "--json", str(report))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    group = json.loads(report.read_text())["groups"]["celery"]
    assert all(row["minimum"] > 0 for row in group["rows"])
    measured = {(target["name"], target["of"]): target["measured"] for target in group["targets"]}
    for name in (celery.GUARDED, celery.INSTALLED):
        assert (name, "added to Celery's own tracer") in measured
    assert 0 < measured["tcp: lifeguard.celery.task, SELECT", "/ asyncio.run + connect"] < 1
    for kind in ("native pool", "CONN_MAX_AGE"):
        assert 0 < measured[f"tcp: Django, {kind}, guarded", "/ bare"] < 1
    assert pg.wait_count(0, prefix="bench celery") == 0


def test_a_client_counts_what_went_wrong() -> None:
    """A server that hangs up or says 500 must not look like a fast one."""
    with socket.create_server(("127.0.0.1", 0)) as server, client() as clients:
        port = server.getsockname()[1]
        answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"", BROKEN]
        threading.Thread(target=answer_each, args=(server, answers), daemon=True).start()
        shots = clients.shoot(port, "/", connections=1, seconds=3.0)
    assert len(shots.took) == 1
    assert "the connection was closed" in shots.errors[0]
    assert "HTTP/1.1 500 Oops" in shots.errors


BROKEN = b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"


def answer_each(server: socket.socket, answers: list[bytes]) -> None:
    """One answer to one request for each connection, then the end of the server."""
    for answer in answers:
        connection, _ = server.accept()
        with connection:
            if connection.recv(65536) and answer:
                connection.sendall(answer)
                connection.recv(65536)  # the next request, or the end
    server.close()


def test_an_unknown_group_is_refused_with_the_known_ones() -> None:
    ran = bench("--only", "nonsense")
    assert ran.returncode == 2
    assert "asgi" in ran.stderr
