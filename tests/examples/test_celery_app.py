"""examples/celery_app, by its one command: on a redis, on a folder, and without a broker."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from lifeguard.testing import Postgres
from tests.examples.server import ROOT
from tests.support.redis import redis


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    with redis() as url:
        yield url


def command(*options: str) -> list[str]:
    return [sys.executable, "examples/run.py", "celery_app", *options]


def run(dsn: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*options),
        cwd=ROOT,
        env={**os.environ, "LIFEGUARD_DSN": dsn},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def a_good_day(ended: subprocess.CompletedProcess[str], children: int) -> None:
    """20 orders, of which two fail; each child kept to its three connections."""
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "charged: 18, and 2 failed and forgot their connection\n" in ended.stdout
    assert "shipped: 18, at the second try\n" in ended.stdout
    assert "reported: 18 orders, 36 tries\n" in ended.stdout
    held = [int(n) for n in re.findall(r"child \d+: (\d) connections, at most 3", ended.stdout)]
    assert 1 <= len(held) <= children, ended.stdout
    assert max(held) <= 3
    assert ended.stdout.endswith("after the worker's end: 0 connections\n")
    # Each was taken back, and was told about: in the child that had it.
    assert ended.stderr.count("was not given back by the unit's end") == 2
    assert "Traceback" not in ended.stderr


def test_on_a_redis(broker: str, pg: Postgres, appname: str, dsn: str) -> None:
    """One command: the orders are done, and no connection is left in PostgreSQL."""
    ended = run(dsn, "--orders=20", "--children=2", f"--broker={broker}")
    a_good_day(ended, children=2)
    assert ended.stdout.startswith(f"broker: {broker}\n")
    assert pg.wait_count(0, prefix=appname) == 0


def test_on_a_folder(pg: Postgres, appname: str, dsn: str, tmp_path: os.PathLike[str]) -> None:
    """The same day on a machine without any broker."""
    ended = run(dsn, "--orders=20", "--children=2", f"--broker=folder://{tmp_path}")
    a_good_day(ended, children=2)
    assert ended.stdout.startswith(f"broker: files in {tmp_path}\n")
    assert pg.wait_count(0, prefix=appname) == 0


def test_a_broker_that_does_not_answer_is_told_without_its_password(dsn: str) -> None:
    ended = run(dsn, "--broker=redis://:hush@127.0.0.1:1/0")
    assert ended.returncode == 1
    assert "127.0.0.1:1/0 does not answer" in ended.stderr
    assert "make services" in ended.stderr
    assert "hush" not in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


def is_worker(process: psutil.Process) -> bool:
    try:
        return "worker" in process.cmdline()
    except psutil.Error:  # it has ended meanwhile
        return False


def test_stopped_while_it_starts_it_leaves_nothing(
    broker: str, pg: Postgres, appname: str, dsn: str
) -> None:
    """A Ctrl-C as soon as the worker is there: it ends, and so does all that started it."""
    process = subprocess.Popen(
        command("--orders=20", "--children=2", f"--broker={broker}"),
        cwd=ROOT,
        env={**os.environ, "LIFEGUARD_DSN": dsn},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    family: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 90
        while not any(map(is_worker, family)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
            family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        _, alive = psutil.wait_procs(family, timeout=40)
        assert alive == []
        assert pg.wait_count(0, prefix=appname) == 0
    finally:
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        if process.poll() is None:
            process.kill()
        process.wait()
