"""``manage.py lifeguard`` against a real PostgreSQL, with connections that are named as lanes are.

What it shows is checked in both forms, and that it never shows what a query was about.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from lifeguard.testing import Postgres
from tests.django.databases import database
from tests.django.fresh import ROOT, Project
from tests.django.requests import REQUESTS
from tests.support.ports import free_port

NAME = f"lifeguard_command_{os.getpid()}"
SECRET = "s3cret-of-a-customer"


@pytest.fixture(scope="module")
def own_dsn(pg: Postgres) -> Iterator[str]:
    """A database that nobody else uses, so that all its connections are known."""
    with pg.connect() as admin:
        admin.execute(f"CREATE DATABASE {NAME}")
        admin.execute(f"CREATE ROLE {NAME} LOGIN PASSWORD '{SECRET}'")
        try:
            yield make_conninfo(pg.dsn, dbname=NAME)
        finally:
            admin.execute(f"DROP DATABASE {NAME} WITH (FORCE)")
            admin.execute(f"DROP ROLE {NAME}")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, own_dsn: str) -> Project:
    project = Project(tmp_path_factory.mktemp("command") / "shop")
    project.install()
    entry = database(own_dsn)
    limited = entry | {"USER": NAME, "PASSWORD": SECRET}
    project.set(
        DATABASES={
            "default": entry,
            "limited": limited,
            "sqlite": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
            "mysql": {"ENGINE": "django.db.backends.mysql", "NAME": "old"},
            "away": limited | {"HOST": "127.0.0.1", "PORT": str(free_port())},
            "refused": entry | {"USER": NAME, "PASSWORD": "wr0ng"},
        }
    )
    return project


@pytest.fixture(autouse=True)
def quiet(pg: Postgres, own_dsn: str) -> None:
    """A backend leaves a moment after its client: nobody of the test before is counted."""
    deadline = time.monotonic() + 10
    with pg.connect() as admin:
        asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        while admin.execute(asked, [NAME]).fetchone() != (0,):
            assert time.monotonic() < deadline
            time.sleep(0.02)


@contextlib.contextmanager
def lanes(dsn: str) -> Iterator[dict[str, int]]:
    """Two workers: one idles, waits in a transaction and waits for a lock; one only idles."""
    with contextlib.ExitStack() as stack:

        def connect(name: str) -> psycopg.Connection[Any]:
            connection = psycopg.connect(dsn, application_name=name, autocommit=True)
            return stack.enter_context(contextlib.closing(connection))

        idle = connect("shop@web-1:4711 lane 1")
        holds = connect("shop@web-1:4711 lane 2")
        waits = connect("shop@web-1:4711 lane 10")
        pooled = connect("shop@web-2:388")
        other = connect("psql")
        idle.execute(f"SELECT '{SECRET}'")
        holds.execute("CREATE TABLE IF NOT EXISTS item (name text)")
        holds.execute("BEGIN")
        holds.execute(f"/* {SECRET} */ LOCK TABLE item")
        # Sent without waiting for an answer, which does not come.
        waits.pgconn.send_query(f"UPDATE item SET name = '{SECRET}'".encode())
        deadline = time.monotonic() + 10
        asked = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
        while pooled.execute(asked, [waits.info.backend_pid]).fetchone() == (0,):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield {
            name: connection.info.backend_pid
            for name, connection in {
                "idle": idle,
                "holds": holds,
                "waits": waits,
                "pooled": pooled,
                "other": other,
            }.items()
        }
        holds.execute("ROLLBACK")


def shape(found: Any) -> Any:
    """The keys of an object, and of what is in it."""
    if isinstance(found, list) and found and isinstance(found[0], dict):
        return [shape(found[0])]
    return {key: shape(value) for key, value in found.items()} if isinstance(found, dict) else None


def words(line: str) -> list[str]:
    return line.split()


def test_it_shows_who_holds_what(project: Project, own_dsn: str) -> None:
    """By worker and lane, in text and as JSON, with who waits for whom; nothing of the queries."""
    with lanes(own_dsn) as backends:
        text = project.manage("lifeguard")
        done = project.manage("lifeguard", "--json")
        coloured = project.manage("lifeguard", "--force-color")
    assert text.returncode == done.returncode == coloured.returncode == 0, text.stderr + done.stderr
    for each in (text, done, coloured):
        assert SECRET not in each.stdout + each.stderr

    found = json.loads(done.stdout)
    assert found["database"]["name"] == NAME
    assert found["hidden"] == 0
    counts = found["connections"]
    assert counts["lifeguard"] == 4
    assert counts["others"] >= 1
    assert counts["free"] == (
        counts["max_connections"] - counts["reserved"] - counts["lifeguard"] - counts["others"]
    )
    page = (ROOT / "docs" / "checks" / "command.md").read_text()
    documented = json.loads(page.partition("```json")[2].partition("```")[0])
    assert shape(found) == shape(documented)
    first, second = found["workers"]
    assert (first["name"], first["host"], first["pid"]) == ("shop", "web-1", 4711)
    assert (second["name"], second["host"], second["pid"]) == ("shop", "web-2", 388)
    idle, holds, waits = first["connections"]
    assert [row["lane"] for row in first["connections"]] == [1, 2, 10]
    assert (idle["backend"], idle["state"], idle["command"]) == (backends["idle"], "idle", "SELECT")
    assert idle["transaction_seconds"] is None
    assert (holds["state"], holds["command"]) == ("idle in transaction", None)  # a comment first
    assert holds["transaction_seconds"] >= holds["state_seconds"] >= 0
    assert (waits["state"], waits["command"]) == ("active", "UPDATE")
    assert waits["waits_for"] == "Lock: relation"
    assert waits["blocked_by"] == [backends["holds"]]
    (pooled,) = second["connections"]
    assert (pooled["lane"], pooled["backend"]) == (None, backends["pooled"])

    lines = text.stdout.splitlines()
    assert f"database {NAME}: 4 connections of lifeguard's workers, " in lines[0]
    assert "shop@web-1 pid 4711: 1 active, 1 idle, 1 idle in transaction" in lines
    assert "shop@web-2 pid 388: 1 idle" in lines
    (row,) = (line for line in lines if str(backends["waits"]) in line and "UPDATE" in line)
    assert words(row)[:3] == ["10", str(backends["waits"]), "active"]
    assert row.endswith(f"Lock: relation, held by {backends['holds']}")
    assert "psql" not in text.stdout

    assert "\x1b[" in coloured.stdout
    assert "\x1b[" not in text.stdout
    assert str(backends["waits"]) in coloured.stdout


IN_A_VIEW = """
import json
from io import StringIO

from django.core.management import call_command
from django.db import connection, transaction
from django.http import HttpResponse
from django.urls import path


def index(request):
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        before = cursor.fetchone()
        out = StringIO()
        call_command("lifeguard", json=True, stdout=out)
        cursor.execute("SELECT pg_backend_pid()")
        assert cursor.fetchone() == before
    (worker,) = json.loads(out.getvalue())["workers"]
    (row,) = worker["connections"]
    assert row["backend"] == before[0] and row["transaction_seconds"] >= 0, row
    return HttpResponse(f"{worker['name']} lane {row['lane']}")


urlpatterns = [path("", index)]
"""


@pytest.mark.parametrize(
    ("pool", "lane"), [(None, 1), ({"min_size": 1, "max_size": 1}, None)], ids=["lane", "pool"]
)
def test_called_in_a_view_it_leaves_the_view_its_transaction(
    project: Project, own_dsn: str, tmp_path: Path, pool: dict[str, int] | None, lane: int | None
) -> None:
    """It asks on a connection of its own, and sees that of the view as lifeguard has named it.

    The connections of a native pool have no lane: they go from one to the other.
    """
    mine = project.copy(tmp_path / "shop")
    mine.set(DATABASES={"default": database(own_dsn, OPTIONS={"pool": pool})}, ALLOWED_HOSTS=["*"])
    mine.write("shop/urls.py", IN_A_VIEW)
    done = mine.script(f"{REQUESTS}\nasgi(lifeguard.wrap(get_asgi_application()))")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"200 shop lane {lane}\n"


def test_without_rich_it_is_plain_text(project: Project, own_dsn: str, tmp_path: Path) -> None:
    """rich is optional: the same lines, without colours."""
    (tmp_path / "rich.py").write_text("raise ImportError('not installed')\n")
    path = f"{tmp_path}:{project.folder}:{ROOT}"
    done = project.manage("lifeguard", "--force-color", env={"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    assert "\x1b[" not in done.stdout
    assert done.stdout.startswith("PostgreSQL ")


def test_nothing_found_says_why_that_may_be(project: Project) -> None:
    """And how many connections there are, for which the command does not count itself."""
    done = project.manage("lifeguard")
    assert done.returncode == 0, done.stderr
    assert f"database {NAME}: 0 connections of lifeguard's workers" in done.stdout
    assert "No worker has a connection here now. Lanes connect when a request" in done.stdout


def test_a_role_that_may_not_look_is_told_what_it_needs(project: Project, own_dsn: str) -> None:
    """It sees the lanes by name, and neither state nor query of other roles."""
    with lanes(own_dsn):
        done = project.manage("lifeguard", "--database", "limited")
    assert done.returncode == 0, done.stderr
    assert "shop@web-1 pid 4711: 3 hidden" in done.stdout
    assert f"5 connections belong to other roles, and role {NAME} may not look" in done.stdout
    assert f"GRANT pg_read_all_stats TO {NAME}." in done.stdout
    assert SECRET not in done.stdout + done.stderr


WRONG = {
    "sqlite": "Database 'sqlite' is SQLite, and this command asks PostgreSQL. Lanes work with it",
    "mysql": "Database 'mysql' cannot be used: ImproperlyConfigured: Error loading MySQLdb module.",
    "away": "Database 'away' does not answer: OperationalError: connection failed: ",
    "refused": "Database 'refused' does not answer: OperationalError: connection failed: ",
    "nowhere": "There is no database 'nowhere' in DATABASES: default, limited, sqlite, mysql, away",
}


def test_what_cannot_be_looked_at_is_said_in_one_line(project: Project) -> None:
    """CommandError, which manage.py shows without a traceback; and no password."""
    done = project.script(
        f"""
from django.core.management import CommandError, call_command
for alias in {list(WRONG)!r}:
    try:
        call_command("lifeguard", database=alias)
    except CommandError as exc:
        print(" ".join(str(exc).split()))
"""
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(WRONG)
    for line, wanted in zip(lines, WRONG.values(), strict=True):
        assert line.startswith(wanted)
    assert "refused" in lines[2]
    for secret in (SECRET, "wr0ng"):
        assert secret not in done.stdout + done.stderr

    shown = project.manage("lifeguard", "--database", "away")
    assert shown.returncode == 1
    assert shown.stderr.startswith("CommandError: Database 'away' does not answer")
    assert "Traceback" not in shown.stderr


def test_watching_shows_it_again_until_ctrl_c(project: Project) -> None:
    """With --json a line each time, for programs that read lines."""
    process = subprocess.Popen(
        [sys.executable, "manage.py", "lifeguard", "--json", "--watch", "0.1"],
        cwd=project.folder,
        env={**os.environ, "PYTHONPATH": f"{project.folder}:{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for _ in range(3):
            assert json.loads(process.stdout.readline())["workers"] == []
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=90)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    assert errors == ""

    done = project.manage("lifeguard", "--watch", "soon")
    assert done.returncode == 2
    assert "'soon' is no number of seconds from 0.1 to 86400" in done.stderr
