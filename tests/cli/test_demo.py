"""The demo itself: real servers, the PostgreSQL of the test run, one short scenario."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import html.parser
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET

import celery
import pytest

from lifeguard.cli._demo import command, load, servers
from lifeguard.cli._demo.scenarios import APPS, BY_NAME, SCENARIOS

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def tmp_path():
    """Short: the path of a unix socket may have about 100 bytes, and pytest's are longer."""
    with tempfile.TemporaryDirectory(prefix="lg-") as name:
        yield pathlib.Path(name)


@pytest.fixture(autouse=True)
def _time(monkeypatch):
    """A machine that is busy with other tests starts a server late."""
    monkeypatch.setattr(servers, "START_WITHIN", 90)
    monkeypatch.setattr(servers, "STOP_WITHIN", 60)


@contextlib.contextmanager
def demo(pg, tmp_path, *args):
    env = {**os.environ, "LIFEGUARD_DSN": pg.dsn, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "lifeguard.cli", "demo", *args],
        env=env,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def nothing_is_left(pg, tmp_path):
    assert pg.wait_count(0, prefix="lifeguard-demo") == 0
    with pg.connect() as conn:
        row = conn.execute("select count(*) from pg_roles where rolname like 'lifeguard_demo_%'")
        assert row.fetchone() == (0,)
    assert list(tmp_path.glob("lifeguard-demo-*")) == []  # sockets, logs
    assert processes_below(tmp_path) == []


def processes_below(tmp_path):
    """Processes whose command line names a socket of this test."""
    listing = subprocess.run(
        ["ps", "-ww", "-eo", "pid=,args="], capture_output=True, text=True, check=True
    ).stdout
    return [line for line in listing.splitlines() if str(tmp_path) in line]


def wait_until_none_is_below(tmp_path):
    deadline = time.monotonic() + 40
    while (found := processes_below(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_one_scenario_to_the_end(pg, tmp_path):
    page = tmp_path / "out" / "demo.html"
    args = ("--scenario", "wsgi", "--seconds", "10", "--json", "--html", str(page))
    with demo(pg, tmp_path, *args) as process:
        stdout, stderr = process.communicate(timeout=150)
    assert process.returncode == 0, stderr
    result = json.loads(stdout)  # nothing else on stdout
    (scenario,) = result["scenarios"]
    bare, guarded = scenario["bare"], scenario["guarded"]
    assert result["ok"] is True
    assert bare["verdict"] == "fails"
    assert bare["failed"] > 0
    assert any("PoolTimeout" in reason for reason in bare["reasons"])
    assert guarded["verdict"] == "ok"
    assert guarded["ok"] > bare["ok"]
    assert (guarded["wrong"], guarded["held"], guarded["left_over"]) == (0, 0, 0)
    assert 0 < guarded["peak"] <= guarded["bound"] == 6
    assert guarded["peak"] == max(sample["total"] for sample in guarded["samples"])
    assert len(guarded["samples"]) > 20
    assert "wsgi         running" in stderr  # no terminal: plain lines
    assert str(page) in stderr
    is_self_contained(page.read_text(encoding="utf-8"))
    nothing_is_left(pg, tmp_path)


def test_four_broken_streams_stop_django_bare_and_not_guarded(pg, monkeypatch, capsys):
    """The users of the bare site get PoolTimeouts only, from the fourth broken export on."""
    monkeypatch.setenv("LIFEGUARD_DSN", pg.dsn)
    assert command.run((BY_NAME["django"],), seconds=8, as_json=True, page=None) == 0
    (scenario,) = json.loads(capsys.readouterr().out)["scenarios"]
    bare, guarded = scenario["bare"], scenario["guarded"]
    assert bare["ended_early"] == guarded["ended_early"] == 4
    assert bare["verdict"] == "fails"
    assert any("couldn't get a connection" in reason for reason in bare["reasons"])
    assert bare["samples"][-1]["ok"] == long_after(bare)["ok"]  # not one more answer
    assert guarded["verdict"] == "ok"
    assert guarded["samples"][-1]["ok"] > long_after(guarded)["ok"]
    assert (guarded["failed"], guarded["held"], guarded["left_over"]) == (0, 0, 0)


def test_four_children_of_celery_meet_the_limit_bare_and_not_guarded(pg, monkeypatch, capsys):
    """Bare, tasks fail with PostgreSQL's FATAL, though they were to need sixteen connections."""
    monkeypatch.setenv("LIFEGUARD_DSN", pg.dsn)
    assert command.run((BY_NAME["celery"],), seconds=6, as_json=True, page=None) == 0
    (scenario,) = json.loads(capsys.readouterr().out)["scenarios"]
    bare, guarded = scenario["bare"], scenario["guarded"]
    assert bare["verdict"] == "fails"
    assert bare["peak"] > 2 * bare["bound"]
    assert guarded["verdict"] == "ok"
    assert 0 < guarded["peak"] <= guarded["bound"] == 16
    assert (guarded["failed"], guarded["held"], guarded["left_over"]) == (0, 0, 0)


def test_a_result_that_is_being_written_is_read_again(tmp_path):
    """A file is there before all of it is: half of a result is none yet."""
    app = celery.Celery(broker="memory://", backend=f"file://{tmp_path}")
    result = app.AsyncResult("an-id")
    path = tmp_path / app.backend.get_key_for_task("an-id").decode()
    path.write_text('{"status": "SUCCESS", "result": "half wri')

    async def read():
        task = asyncio.create_task(load._result(result))
        await asyncio.sleep(0.1)  # it has looked, and found half
        assert not task.done()
        path.write_text('{"status": "SUCCESS", "result": "whole", "task_id": "an-id"}')
        return await task

    assert asyncio.run(read())["result"] == "whole"


def test_a_worker_that_is_never_ready_is_told_with_its_log(pg, monkeypatch, capsys):
    """A Celery worker does not listen: what it says in its log is waited for."""
    monkeypatch.setenv("LIFEGUARD_DSN", pg.dsn)
    monkeypatch.setattr(servers, "START_WITHIN", 0.5)
    mute = dataclasses.replace(BY_NAME["celery"], ready="what no worker says")
    assert command.run((mute,), seconds=3, as_json=True, page=None) == 1
    (fault,) = json.loads(capsys.readouterr().out)["scenarios"][0]["guarded"]["faults"]
    assert "the server was not ready within" in fault


def long_after(side):
    """The last export breaks off at half of the eight seconds."""
    return next(sample for sample in side["samples"] if sample["at"] > 6.5)


class Loads(html.parser.HTMLParser):
    """Collects what a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in {"src", "srcset", "data", "poster", "action", "xlink:href"} or (
                name == "href" and tag != "a"
            ):
                self.found.append((tag, name, value))


def is_self_contained(text):
    loads = Loads()
    loads.feed(text)
    assert loads.found == []
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|import\(", text)
    assert "https://" not in re.sub(r'<a href="https://github\.com/[^"]*">', "", text)
    assert "http://" not in text
    charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(charts) == 2
    for chart in charts:
        drawn = ET.fromstring(chart)
        lines = [path.get("d") for path in drawn.iter("path") if "line" in path.get("class", "")]
        assert len(lines) == 2
        assert all(line.count("H") + line.count("L") > 20 for line in lines)
    assert "prefers-color-scheme:dark" in text


def test_a_guarded_side_that_does_not_guard_is_exit_status_1(pg, tmp_path, monkeypatch, capsys):
    """The same scenario with lifeguard's lines taken away from both sides."""
    monkeypatch.setenv("LIFEGUARD_DSN", pg.dsn)
    wsgi = BY_NAME["wsgi"]
    unguarded = dataclasses.replace(wsgi, server=(*wsgi.server, "--env", "GUARDED="))
    page = tmp_path / "demo.html"
    assert command.run((unguarded,), seconds=10, as_json=True, page=page) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["ok"] is False
    assert json.loads(out)["scenarios"][0]["guarded"]["verdict"] == "broken"
    assert "did not keep its promise in: wsgi" in err
    assert "did not keep its promise" in page.read_text(encoding="utf-8")


def test_a_server_that_does_not_start_is_told_with_its_log(pg, monkeypatch, capsys):
    monkeypatch.setenv("LIFEGUARD_DSN", pg.dsn)
    broken = dataclasses.replace(BY_NAME["wsgi"], server=("gunicorn", "nowhere:app"))
    assert command.run((broken,), seconds=3, as_json=True, page=None) == 1
    (fault,) = json.loads(capsys.readouterr().out)["scenarios"][0]["guarded"]["faults"]
    assert "the server ended at start" in fault
    assert "nowhere" in fault


def test_one_side_that_does_not_start_does_not_stop_the_other(pg, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LIFEGUARD_DSN", pg.dsn)
    wsgi = BY_NAME["wsgi"]
    source = "import os\nassert 'GUARDED' not in os.environ\n" + wsgi.app.read_text()
    (tmp_path / "onesided.py").write_text(source.replace("from __future__ import annotations", ""))
    argv = tuple("onesided:app" if arg == "wsgi:app" else arg for arg in wsgi.server)
    onesided = dataclasses.replace(wsgi, server=(*argv, "--chdir", str(tmp_path)))
    assert command.run((onesided,), seconds=3, as_json=True, page=None) == 1
    (scenario,) = json.loads(capsys.readouterr().out)["scenarios"]
    assert scenario["bare"]["ok"] > 0
    assert scenario["guarded"]["verdict"] == "broken"
    assert "AssertionError" in scenario["guarded"]["faults"][0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle_it_leaves_nothing(pg, tmp_path, number):
    with demo(pg, tmp_path, "--scenario", "workers", "--no-html") as process:
        deadline = time.monotonic() + 90
        while pg.count(prefix="lifeguard-demo") < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert processes_below(tmp_path)  # the servers are there to be ended
        process.send_signal(number)
        _, stderr = process.communicate(timeout=90)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    nothing_is_left(pg, tmp_path)


def test_killed_it_takes_its_servers_with_it(pg, tmp_path):
    with demo(pg, tmp_path, "--scenario", "workers", "--no-html") as process:
        deadline = time.monotonic() + 90
        while len(processes_below(tmp_path)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(processes_below(tmp_path)) >= 2
        process.kill()  # no finally, no atexit
        process.communicate()
    assert wait_until_none_is_below(tmp_path) == []
    assert pg.wait_count(0, prefix="lifeguard-demo") == 0
    with pg.connect() as conn:  # nobody is left who could have done this
        conn.execute(
            "do $$ declare r text; begin for r in select rolname from pg_roles"
            " where rolname like 'lifeguard_demo_%' loop execute 'drop role ' || r;"
            " end loop; end $$"
        )


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_bare_and_guarded_differ_by_two_lines(scenario):
    assert scenario.app.parent == APPS
    lines = [line for line in scenario.difference.splitlines() if line]
    installed = 'settings.INSTALLED_APPS += ["lifeguard.django"]'
    if scenario.name == "django":  # its pool is Django's own
        assert lines == [installed, "import lifeguard", "app = lifeguard.wrap(app)"]
    elif scenario.name == "celery":
        assert lines == ["import lifeguard.celery", installed, "lifeguard.celery.install(app)"]
    else:
        assert lines == ["import lifeguard", "app = lifeguard.wrap(app, resources=[pool])"]
    assert scenario.limit >= scenario.bound  # guarded must have room for what it may use
