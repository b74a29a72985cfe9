"""A project's own tests go on as they did when ``lifeguard.django`` comes into INSTALLED_APPS.

Its tests (inner/) are run by Django's runner and by pytest-django, without lifeguard and with it.
They stand in a project of their own because a test runner wants a process for itself.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from lifeguard.testing import Postgres
from tests.servers.harness import ROOT

INNER = "tests/django/inner"
FILES = ("cases.py", "fixtures.py")
RUNNERS = {
    "django": ["django", "test", "tests.django.inner", "--pattern", "cases.py", "-v", "2"],
    "pytest": [
        "pytest",
        "-v",
        "-c",
        f"{INNER}/pytest.ini",
        f"{INNER}/cases.py",
        f"{INNER}/fixtures.py",
    ],
}
#: What a runner says of each test.
OUTCOME = {
    "django": re.compile(r"^(test_\w+ \(\S+\)) \.\.\. (\w+)$", re.MULTILINE),
    "pytest": re.compile(r"^(\S+::\S+) (PASSED|FAILED|ERROR|SKIPPED)", re.MULTILINE),
}
LEAST = {"django": 15, "pytest": 27}


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_tests_of_a_project_go_on_as_before(runner: str, pg: Postgres) -> None:
    """The same tests, the same results: they pass. The test database is gone afterwards, which
    PostgreSQL would refuse if anybody were still connected to it."""
    bare, guarded = (run(RUNNERS[runner], pg, guarded=guarded) for guarded in (False, True))
    assert bare.returncode == guarded.returncode == 0, bare.stdout + guarded.stdout
    results = [dict(OUTCOME[runner].findall(ran.stdout)) for ran in (bare, guarded)]
    assert results[0] == results[1]
    assert set(results[0].values()) == {"ok" if runner == "django" else "PASSED"}
    assert len(results[0]) >= LEAST[runner]


def test_threads_of_tests_do_not_keep_the_test_database(pg: Postgres) -> None:
    """Bare, the runner ends with an error: it cannot drop what a thread is connected to, which
    has ended long ago. Guarded, such threads have closed their connections."""
    command = ["django", "test", "tests.django.inner", "--pattern", "leaving.py"]
    bare, guarded = (run(command, pg, guarded=guarded) for guarded in (False, True))
    assert "is being accessed by other users" in bare.stdout
    assert bare.returncode != 0
    assert guarded.returncode == 0, guarded.stdout


def run(command: list[str], pg: Postgres, *, guarded: bool) -> subprocess.CompletedProcess[str]:
    name = f"inner_{command[0]}_{'guarded' if guarded else 'bare'}_{os.getpid()}"
    env = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.django.inner.settings",
        "PYTHONPATH": str(ROOT),
        "INNER_DSN": pg.dsn,
        "INNER_NAME": name,
        "INNER_GUARDED": "1" if guarded else "",
    }
    ran = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    for noise in ("Exception ignored", "could not be closed", "closes although"):
        assert noise not in ran.stdout, ran.stdout
    with pg.connect() as connection:
        where = "datname = %s" if ran.returncode == 0 else "false AND datname = %s"
        query = f"SELECT count(*) FROM pg_database WHERE {where}"
        assert connection.execute(query, [f"test_{name}"]).fetchone() == (0,), ran.stdout
        connection.execute(f'DROP DATABASE IF EXISTS "test_{name}" WITH (FORCE)')
    return ran
