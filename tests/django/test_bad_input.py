"""What people get wrong with Django at first: each mistake has words that say what to do.

And it does no harm: the project answers as without lifeguard, or does not start and says why.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.django.fresh import ROOT, Project
from tests.django.requests import REQUESTS
from tests.support.ports import free_port

PAGES = """
from django.contrib.sessions.models import Session
from django.http import HttpResponse
from django.urls import path


def count(request):
    return HttpResponse(f"{Session.objects.count()} sessions")


async def acount(request):
    return HttpResponse(f"{await Session.objects.acount()} sessions")


urlpatterns = [path("", count), path("async", acount)]
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project on SQLite, with a page that asks it."""
    project = Project(tmp_path_factory.mktemp("bad_input") / "shop")
    project.write("shop/urls.py", PAGES)
    project.set(ALLOWED_HOSTS=["*"])
    done = project.manage("migrate", "sessions", "--verbosity=0")
    assert done.returncode == 0, done.stderr
    return project


@pytest.fixture
def project(template: Project, tmp_path: Path) -> Project:
    return template.copy(tmp_path / "shop")


BOTH = """
wsgi(wrapped(get_wsgi_application()))
asgi(wrapped(get_asgi_application()))
asgi(wrapped(get_asgi_application()), "/async")
"""


def test_lanes_that_are_none_keep_a_server_from_starting(project: Project) -> None:
    """uvicorn ends with the reason; where the first request opens, it is a 500 with the reason."""
    project.install()
    project.wrap("asgi")
    for lanes, reason in ((0, "not 0"), (-1, "not -1")):
        project.set(LIFEGUARD={"LANES": lanes})
        wanted = f"LIFEGUARD['LANES'] must be a whole number, 1 or more, {reason}"
        if lanes == 0:
            done = project.python("-m", "uvicorn", "shop.asgi:application", f"--port={free_port()}")
            assert done.returncode != 0
        else:
            done = project.script(f"{REQUESTS}\nwsgi(lifeguard.wrap(get_wsgi_application()))")
            assert "500 " in done.stdout
        assert wanted in done.stderr
    checked = project.manage("check")
    assert checked.returncode == 1
    assert f"(lifeguard.E002) {wanted}" in checked.stderr


def test_lifeguard_django_without_wrap_serves_as_django_does(project: Project) -> None:
    """The log says once what is missing."""
    project.install()
    done = project.script(f"{REQUESTS}\nwrapped = lambda app: app\n{BOTH}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["200 0 sessions"] * 3
    assert re.findall(r"\(lifeguard\.\w+\)", done.stderr) == ["(lifeguard.W001)"]


def test_wrap_without_lifeguard_django_serves_and_says_what_is_missing(project: Project) -> None:
    """Requests are units, as those of any app; the log names the line for the settings."""
    done = project.script(f"{REQUESTS}\nwrapped = lifeguard.wrap\n{BOTH}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["200 0 sessions"] * 3
    assert 'add "lifeguard.django" to INSTALLED_APPS' in done.stderr


def test_sqlite_and_mysql_are_served_on_lanes(project: Project) -> None:
    """SQLite works; MySQL without its driver is not touched, as long as nobody asks it.

    The command says that it has nobody to ask about SQLite.
    """
    project.install()
    project.wrap("asgi")
    project.append(
        "shop/settings.py",
        'DATABASES["old"] = {"ENGINE": "django.db.backends.mysql", "NAME": "old"}\n',
    )
    done = project.script(f"{REQUESTS}\nwrapped = lifeguard.wrap\n{BOTH}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["200 0 sessions"] * 3
    assert done.stderr == ""

    checked = project.manage("check", "--tag", "lifeguard")
    assert "no issues" in checked.stdout
    shown = project.manage("lifeguard")
    assert shown.returncode == 1
    assert shown.stderr.startswith("CommandError: Database 'default' is SQLite, and this command")


def test_an_app_of_the_other_protocol_is_refused_in_words(project: Project) -> None:
    """A WSGI server that is given the ASGI app, and the other way round."""
    project.install()
    done = project.script(
        f"""{REQUESTS}
for call, app in (wsgi, get_asgi_application()), (asgi, get_wsgi_application()):
    try:
        call(lifeguard.wrap(app))
    except TypeError as exc:
        print(exc)
"""
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert re.search(r"lifeguard.*asgi.*'send'", first, re.IGNORECASE)
    assert re.search(r"lifeguard.*wsgi.*3 were given", second, re.IGNORECASE)


ALONE = """
import lifeguard
import lifeguard.django
import lifeguard.django.checks

print(lifeguard.django.status()["lanes"])
async def app(scope, receive, send): ...
lifeguard.wrap(app)
with lifeguard.unit():
    print("unit")
"""


def test_without_settings_nothing_breaks(tmp_path: Path) -> None:
    """lifeguard.django imported where there is no Django project: a test, a script, a REPL."""
    done = run(ALONE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "unit"]


def test_settings_without_a_module_are_enough(tmp_path: Path) -> None:
    """settings.configure(), as small scripts do it."""
    done = run(
        """
import django
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["lifeguard.django"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    LIFEGUARD={"LANES": 2},
)
django.setup()
from django.core import checks
from django.db import connection
import lifeguard, lifeguard.django
print(checks.run_checks(tags=["lifeguard"]))
with lifeguard.unit():
    with connection.cursor() as cursor:
        print(cursor.execute("SELECT 1").fetchone())
print(lifeguard.django.status()["application_name"].partition("@")[0])
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "(1,)", "django"]


def run(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env: dict[str, Any] = {**os.environ, "PYTHONPATH": str(ROOT)}
    env.pop("DJANGO_SETTINGS_MODULE", None)
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
    )
