"""What ``manage.py check`` says about a project that has lifeguard in it, and what it does not.

Real projects as startproject makes them, asked in processes of their own. Both ways to be wrong are
tested: a finding that does not come, and one that comes without reason.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lifeguard.testing import Postgres
from tests.django.databases import database
from tests.django.fresh import ROOT, Project, ids
from tests.django.requests import REQUESTS
from tests.support.overlay import overlay

PAGES = ROOT / "docs" / "checks"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("startproject") / "shop")


@pytest.fixture
def project(template: Project, tmp_path: Path) -> Project:
    """A fresh project that has lifeguard.django installed, and nothing more."""
    project = template.copy(tmp_path / "project")
    project.install()
    return project


def pg_database(**more: Any) -> dict[str, Any]:
    """A database that nobody connects to."""
    options = more.pop("OPTIONS", {})
    return {"ENGINE": "django.db.backends.postgresql", "NAME": "shop", "OPTIONS": options, **more}


ASGI = {"ASGI_APPLICATION": "shop.asgi.application"}
POOL = {"pool": {"min_size": 2, "max_size": 4}}


# -- a fresh project ------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [("asgi",), ("wsgi",), ("asgi", "wsgi")], ids="-".join)
def test_a_fresh_project_wrapped_as_documented_has_no_findings(
    project: Project, wrapped: tuple[str, ...]
) -> None:
    """startproject makes asgi.py and wsgi.py, and only one of them is served."""
    project.wrap(*wrapped)
    done = project.manage("check", "--tag", "lifeguard", "--fail-level", "DEBUG")
    assert done.returncode == 0, done.stderr
    assert "no issues (0 silenced)" in done.stdout


def test_a_fresh_project_without_wrap_is_told_so(project: Project) -> None:
    """W001, once, with both files and the line to write. It is a warning: check succeeds."""
    done = project.manage("check")
    assert done.returncode == 0
    assert re.findall(r"\((lifeguard\.\w+)\)", done.stderr) == ["lifeguard.W001"]
    text = " ".join(done.stderr.split())
    assert "(lifeguard.W001) lifeguard.django is installed, but" in text
    assert "shop.asgi.application" in text
    assert "shop.wsgi.application" in text
    assert "application = lifeguard.wrap(get_asgi_application()) in shop.asgi" in text
    assert "See docs/checks/W001.md." in text


def test_the_checks_look_and_do_nothing_else(project: Project) -> None:
    """No app is built, no driver imported: a check runs where neither may work.

    Nothing is found: the versions that the tests are locked to do not leak.
    """
    project.wrap("asgi")
    everything = {
        "DATABASES": {
            "default": pg_database(OPTIONS=POOL, ATOMIC_REQUESTS=True),
            "old": {"ENGINE": "django.db.backends.mysql", "NAME": "old", "CONN_MAX_AGE": 60},
        }
    }
    answer = project.ask({"all": {**everything, **ASGI}})
    assert answer["found"] == {"all": []}
    assert answer["loaded"] == []
    assert answer["made"] == []


def test_a_finding_can_be_silenced(project: Project) -> None:
    """As every finding of Django's."""
    project.set(SILENCED_SYSTEM_CHECKS=["lifeguard.W001"])
    done = project.manage("check", "--tag", "lifeguard")
    assert "no issues (1 silenced)" in done.stdout


# -- is it wrapped --------------------------------------------------------------------------------

HEAD = "from django.core.asgi import get_asgi_application\n"
MODULES = {
    "plain": (HEAD + "application = get_asgi_application()\n", ["W001"]),
    "typed": (
        HEAD + "import lifeguard\napplication: object = lifeguard.wrap(get_asgi_application())\n",
        [],
    ),
    "own_guard": (
        HEAD + "from shop.guard import guard\napplication = guard.wrap(get_asgi_application())\n",
        [],
    ),
    "function": (
        HEAD + "from lifeguard import wrap\ndjango_app = get_asgi_application()\n"
        "async def application(scope, receive, send):\n    await guarded(scope, receive, send)\n"
        "guarded = wrap(django_app)\n",
        [],
    ),
    "middleware": (
        HEAD + "from lifeguard.asgi import Middleware\n"
        "application = Middleware(get_asgi_application())\n",
        [],
    ),
    "renamed": (
        HEAD
        + "from lifeguard import wrap as guarded\napplication = guarded(get_asgi_application())\n",
        [],
    ),
    "partial": (
        HEAD + "import functools, lifeguard\nguarded = functools.partial(lifeguard.wrap)\n"
        "application = guarded(get_asgi_application())\n",
        [],
    ),
    "dotted": (
        HEAD + "import lifeguard.asgi\n"
        "application = lifeguard.asgi.Middleware(get_asgi_application())\n",
        [],
    ),
    "other_middleware": (
        HEAD + "from sentry import Middleware\napplication = Middleware(get_asgi_application())\n",
        ["W001"],
    ),
    "channels": (
        "from channels.routing import ProtocolTypeRouter\napplication = ProtocolTypeRouter({})\n",
        ["W001"],
    ),
    "wrapped_channels": (
        "import lifeguard, shop\napplication = lifeguard.wrap(shop.ProtocolTypeRouter({}))\n",
        [],
    ),
    "mentioned": (HEAD + "# lifeguard.wrap()\napplication = get_asgi_application()\n", ["W001"]),
    "elsewhere": ("from shop.secret import application\n", []),
    "broken": ("application = (\n", []),
    "binary": ("\0", []),
}


def test_the_source_of_the_app_says_whether_it_is_wrapped(project: Project) -> None:
    """Whatever way it is written; and where the source does not say it, nothing is claimed."""
    for name, (source, _) in MODULES.items():
        project.write(f"shop/{name}.py", source)
    cases = {name: {"ASGI_APPLICATION": f"shop.{name}.application"} for name in MODULES}
    cases["missing"] = {"ASGI_APPLICATION": "shop.nowhere.application"}
    cases["no package"] = {"ASGI_APPLICATION": "nowhere.at.all.application"}
    cases["no module"] = {"ASGI_APPLICATION": "application"}
    cases["None"] = {"ASGI_APPLICATION": None}
    found = project.ask(cases)["found"]
    wanted = {name: ids for name, (_, ids) in MODULES.items()}
    # What cannot be read is not blamed; what is not set leaves what startproject made.
    wanted |= {"missing": [], "no package": [], "no module": ["W001"], "None": ["W001"]}
    assert {name: ids(messages) for name, messages in found.items()} == wanted


def test_asgi_application_has_to_be_wrapped_itself(project: Project) -> None:
    """A wrapped wsgi.py does not help the app that the settings name."""
    project.wrap("wsgi")
    (message,) = project.ask({"declared": ASGI})["found"]["declared"]
    assert message["id"] == "lifeguard.W001"
    assert "shop.asgi.application is not wrapped" in message["msg"]
    assert message["hint"].startswith(
        "Write application = lifeguard.wrap(get_asgi_application()) in shop.asgi. See"
    )


# -- the setting ----------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[Any, str, str]] = {
    "no dict": ([("LANES", 8)], "E001", "LIFEGUARD must be a dict such as {'LANES': 8}, not ["),
    "typo": ({"LANE": 8}, "E001", "has the key 'LANE'. Did you mean 'LANES'?"),
    "lower case": ({"lanes": 8}, "E001", "has the key 'lanes'. Did you mean 'LANES'?"),
    "foreign": (
        {"POOL": 8},
        "E001",
        "has the key 'POOL'. It may have LANES, LANE_TIMEOUT, EXECUTORS, NAME, GUARD.",
    ),
    "no lanes": ({"LANES": 0}, "E002", "must be a whole number, 1 or more, not 0"),
    "fewer": ({"LANES": -1}, "E002", "not -1"),
    "text": ({"LANES": "8"}, "E002", "not '8'"),
    "bool": ({"LANES": True}, "E002", "not True"),
    "half": ({"LANES": 2.5}, "E002", "not 2.5"),
    "no time": ({"LANE_TIMEOUT": 0}, "E003", "a number of seconds above 0, not 0"),
    "for ever": ({"LANE_TIMEOUT": float("inf")}, "E003", "not inf"),
    "timeout text": ({"LANE_TIMEOUT": "30s"}, "E003", "not '30s'"),
    "executors": ({"EXECUTORS": "yes"}, "E004", "LIFEGUARD['EXECUTORS'] must be True or False"),
    "name": ({"NAME": ""}, "E004", "LIFEGUARD['NAME'] must be a string that is not empty"),
    "no path": ({"GUARD": "guard"}, "E005", "must be the dotted path of a lifeguard.Lifeguard"),
    "no module": (
        {"GUARD": "shop.guard.guard"},
        "E005",
        "cannot be imported: ModuleNotFoundError: No module named 'shop.guard'",
    ),
    "no attribute": ({"GUARD": "shop.urls.guard"}, "E005", "has no attribute 'guard'"),
    "no guard": ({"GUARD": "shop.urls.urlpatterns"}, "E005", "which is a list and not a lifegu"),
}
GOOD = {
    "nothing": None,
    "empty": {},
    "all": {
        "LANES": 4,
        "LANE_TIMEOUT": 2.5,
        "EXECUTORS": True,
        "NAME": "shop",
        "GUARD": "lifeguard._default",
    },
}


def test_each_mistake_in_the_setting_has_its_own_words(project: Project) -> None:
    """One finding each, that says the key, the value, and what it should be; all at once."""
    project.wrap("asgi")
    cases: dict[str, dict[str, Any]] = {
        name: {"LIFEGUARD": setting} for name, (setting, _, _) in SETTINGS.items()
    }
    cases |= {name: {"LIFEGUARD": setting} for name, setting in GOOD.items()}
    cases["several"] = {"LIFEGUARD": {"LANES": 0, "LANE_TIMEOUT": -1, "TYPO": 1}}
    found = project.ask(cases)["found"]
    assert ids(found["several"]) == ["E001", "E002", "E003"]
    for name in GOOD:
        assert found[name] == [], name
    for name, (_, id, text) in SETTINGS.items():
        (message,) = found[name]
        assert message["id"] == f"lifeguard.{id}", name
        assert text in message["msg"], name
        assert message["hint"] == f"See docs/checks/{id}.md."


# -- databases ------------------------------------------------------------------------------------


def test_connections_that_are_kept_under_asgi_without_lanes(project: Project) -> None:
    """W002 for each such database; not where it is wrapped, under WSGI, or with age 0."""
    kept = {
        "default": pg_database(CONN_MAX_AGE=60),
        "ever": pg_database(CONN_MAX_AGE=None),
        "none": pg_database(CONN_MAX_AGE=0),
        "unset": pg_database(),
    }
    project.write("shop/wrapped.py", MODULES["typed"][0])
    found = project.ask(
        {
            "asgi": {"DATABASES": kept, **ASGI},
            "wsgi": {"DATABASES": kept},
            "wrapped": {"DATABASES": kept, "ASGI_APPLICATION": "shop.wrapped.application"},
        }
    )["found"]
    assert found["wrapped"] == []
    assert ids(found["wsgi"]) == ["W001"]
    assert ids(found["asgi"]) == ["W001", "W002", "W002"]
    first, second = found["asgi"][1:]
    assert "DATABASES['default'] has CONN_MAX_AGE = 60 under ASGI without lanes" in first["msg"]
    assert "DATABASES['ever'] has CONN_MAX_AGE = None under ASGI" in second["msg"]


def test_a_native_pool_that_cannot_work(project: Project) -> None:
    """E006: Django says it at the first query, which is in production."""
    project.wrap("asgi")

    def default(**more: Any) -> dict[str, Any]:
        return {"DATABASES": {"default": pg_database(**more)}}

    found = project.ask(
        {
            "both": default(CONN_MAX_AGE=60, OPTIONS={"pool": True}),
            "for ever": default(CONN_MAX_AGE=None, OPTIONS=POOL),
            "pool": default(OPTIONS={"pool": True}),
            "age": default(CONN_MAX_AGE=60),
            "no pool": default(CONN_MAX_AGE=60, OPTIONS={"pool": False}),
        }
    )["found"]
    assert {name: ids(messages) for name, messages in found.items()} == {
        "both": ["E006"],
        "for ever": ["E006"],
        "pool": [],
        "age": [],
        "no pool": [],
    }
    assert "a native pool together with CONN_MAX_AGE = 60" in found["both"][0]["msg"]


def test_django_before_5_1_has_no_pool(project: Project) -> None:
    """With Django 4.2, which takes the option for one of psycopg's."""
    project.wrap("asgi")
    project.set(DATABASES={"default": pg_database(OPTIONS={"pool": True})})
    path = f"{overlay('django42')}:{project.folder}:{ROOT}"
    done = project.manage("check", "--tag", "lifeguard", env={"PYTHONPATH": path})
    assert "(lifeguard.E006) DATABASES['default'] has OPTIONS['pool'], which Django 4.2" in (
        " ".join(done.stderr.split())
    )
    assert done.returncode == 1


def test_a_pool_that_is_smaller_than_the_lanes(project: Project) -> None:
    """W003, where LANES says more than the pool has; the default takes the pool's size."""
    project.wrap("asgi")

    def case(lanes: int | None, **pools: Any) -> dict[str, Any]:
        given = {} if lanes is None else {"LANES": lanes}
        databases = {
            alias: pg_database(OPTIONS={"pool": pool} if pool else {})
            for alias, pool in pools.items()
        }
        return {"LIFEGUARD": given, "DATABASES": databases}

    found = project.ask(
        {
            "more": case(8, default={"max_size": 4}),
            "psycopg_pool's default": case(5, default=True),
            "same": case(4, default={"max_size": 4}),
            "none said": case(None, default={"min_size": 2, "max_size": 2}),
            "min_size": case(None, default={"min_size": 3}),
            "no pool": case(50, default=None),
            "second": case(None, default=None, second={"max_size": 4}),
        }
    )["found"]
    assert {name: ids(messages) for name, messages in found.items()} == {
        "more": ["W003"],
        "psycopg_pool's default": ["W003"],
        "same": [],
        "none said": [],
        "min_size": [],
        "no pool": [],
        "second": ["W003"],
    }
    assert found["more"][0]["msg"].startswith(
        "The native pool of DATABASES['default'] has 4 connections for 8 lanes of a worker"
    )
    assert 'max_size\'] to 8, or LIFEGUARD["LANES"] to 4.' in found["more"][0]["hint"]


@pytest.mark.parametrize(
    ("env", "shown"),
    [
        ({"GUNICORN_CMD_ARGS": "--workers 2 --threads=8"}, "8 threads (GUNICORN_CMD_ARGS)"),
        ({"GRANIAN_BLOCKING_THREADS": "16"}, "16 threads (GRANIAN_BLOCKING_THREADS)"),
    ],
    ids=["gunicorn", "granian"],
)
def test_a_pool_that_is_smaller_than_the_threads_of_the_server(
    project: Project, env: dict[str, str], shown: str
) -> None:
    """Under WSGI the server's threads hold the pool, and the environment may say how many."""
    project.wrap("wsgi")
    case = {"DATABASES": {"default": pg_database(OPTIONS=POOL)}, "LIFEGUARD": {"LANES": 50}}
    (message,) = project.ask({"pool": case}, env=env)["found"]["pool"]
    assert message["id"] == "lifeguard.W003"
    assert f"has 4 connections for {shown} of a worker" in message["msg"]


# -- views and middleware -------------------------------------------------------------------------

VIEWS = '''
from django.contrib.sessions.models import Session
from django.db import connection, transaction
from django.http import HttpResponse, StreamingHttpResponse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt


def rows():
    for session in Session.objects.all():
        yield session.pk


def clock():
    yield "tick"


def export(request):
    return StreamingHttpResponse(rows())


@csrf_exempt
def inline(request):
    def body():
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            yield "1"
    return StreamingHttpResponse(body())


def expression(request):
    return StreamingHttpResponse(s.pk for s in Session.objects.iterator())


class Report(View):
    def get(self, request):
        return StreamingHttpResponse(rows())


@transaction.non_atomic_requests
def apart(request):
    return StreamingHttpResponse(rows())


def ticks(request):
    return StreamingHttpResponse(clock())


def listing(request):
    return HttpResponse(Session.objects.count())


def leaves_half(request):
    """The first row is written with the stream; then it fails."""
    def body():
        Session.objects.create(session_key="half", session_data="", expire_date="2030-01-01T00:00Z")
        yield "one"
        raise RuntimeError("the second cannot be written")
    return StreamingHttpResponse(body())


async def waits(request):
    return HttpResponse("waited")


class AsyncView(View):
    async def get(self, request):
        return HttpResponse("waited")


@transaction.non_atomic_requests
async def apart_async(request):
    return HttpResponse("waited")


async def sleeps(request):
    came.set()
    await go.wait()
    return HttpResponse("slept")


def plain(request):
    return HttpResponse("plain")


class SyncOnly:
    sync_capable, async_capable = True, False

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        return self.get_response(request)


def factory(get_response):
    def middleware(request):
        return get_response(request)
    return middleware


def urls(*views):
    import sys
    import types

    from django.urls import include, path

    name = "urls_" + "_".join(view.__name__ for view in views)
    module = sys.modules[name] = types.ModuleType(name)
    inner = [
        path(view.__name__, view.as_view() if isinstance(view, type) else view) for view in views
    ]
    module.urlpatterns = [path("inner/", include(inner))]
    return name


urls(listing, ticks)
urls(export, inline, expression, Report, apart, ticks, listing)
urls(waits, AsyncView, apart_async, listing)
urls(leaves_half)
urls(sleeps, plain)
'''


@pytest.fixture
def views(project: Project) -> Project:
    project.write("shop/views.py", VIEWS)
    project.write("shop/apps.py", APPS)
    project.append("shop/settings.py", 'INSTALLED_APPS += ["shop.apps.Shop"]\n')
    project.wrap("asgi")
    return project


APPS = """
from django.apps import AppConfig


class Shop(AppConfig):
    name = "shop"

    def ready(self):
        from . import views
"""
URLS = {
    "sync": "urls_listing_ticks",
    "streams": "urls_export_inline_expression_Report_apart_ticks_listing",
    "async": "urls_waits_AsyncView_apart_async_listing",
}
ATOMIC = {"default": pg_database(ATOMIC_REQUESTS=True)}


def test_atomic_requests_with_streams_and_async_views(views: Project) -> None:
    """W004 and E007 name the views that they are about, and no others."""
    cases: dict[str, Any] = {
        name: {"ROOT_URLCONF": urls, "DATABASES": ATOMIC} for name, urls in URLS.items()
    }
    cases["not atomic"] = {"ROOT_URLCONF": URLS["streams"]}
    cases["broken"] = {"ROOT_URLCONF": "nowhere.urls", "DATABASES": ATOMIC}
    found = views.ask(cases)["found"]
    assert {name: ids(messages) for name, messages in found.items()} == {
        "sync": [],
        "streams": ["W004"],
        "async": ["E007"],
        "not atomic": [],
        "broken": [],  # Django's own check says it
    }
    assert (
        "shop.views.export, shop.views.inline, shop.views.expression and 1 more streams from the"
        in found["streams"][0]["msg"]
    )
    assert (
        "every request to shop.views.waits, shop.views.AsyncView is answered with 500"
        in found["async"][0]["msg"]
    )


def test_what_the_findings_about_databases_say_is_true(
    views: Project, dsn: str, pg: Postgres, appname: str
) -> None:
    """On a real PostgreSQL: what a failing stream wrote stays, an async view is a 500, and a pool
    beside CONN_MAX_AGE is refused.
    """
    table = "c" + re.sub(r"\W", "", appname)
    options = {"application_name": appname, "options": f"-c search_path={table}"}
    default = {**database(dsn, ATOMIC_REQUESTS=True), "OPTIONS": options}
    both = database(dsn, CONN_MAX_AGE=60, OPTIONS=POOL)
    views.set(ALLOWED_HOSTS=["*"], DATABASES={"default": default, "both": both})
    with pg.connect() as admin:
        admin.execute(f"CREATE SCHEMA {table}")
        try:
            done = views.script(
                """
from django.core.management import call_command
from django.test import Client, override_settings
from django.contrib.sessions.models import Session
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, connections

call_command("migrate", "sessions", verbosity=0)
with override_settings(ROOT_URLCONF="urls_leaves_half"):
    response = Client().get("/inner/leaves_half")
    try:
        list(response.streaming_content)
    except RuntimeError as exc:
        print("failed:", exc)
print("left:", Session.objects.count())
with override_settings(ROOT_URLCONF="urls_waits_AsyncView_apart_async_listing"):
    for name in ("waits", "apart_async"):
        print(name, Client(raise_request_exception=False).get(f"/inner/{name}").status_code)
connection.close()
try:
    connections["both"].ensure_connection()
except ImproperlyConfigured as exc:
    print("both:", exc)
"""
            )
        finally:
            admin.execute(f"DROP SCHEMA {table} CASCADE")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "failed: the second cannot be written",
        "left: 1",
        "waits 500",
        "apart_async 200",
        "both: Pooling doesn't support persistent connections.",
    ]


def test_sync_only_middleware_around_async_views(views: Project) -> None:
    """W005 under ASGI where async views wait inside of it; not for Django's own middleware."""
    django_middleware = [
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
    ]
    own = [*django_middleware, "shop.views.SyncOnly", "shop.views.factory"]
    found = views.ask(
        {
            "own": {"ROOT_URLCONF": URLS["async"], "MIDDLEWARE": own},
            "django's": {"ROOT_URLCONF": URLS["async"], "MIDDLEWARE": django_middleware},
            "sync views": {"ROOT_URLCONF": URLS["sync"], "MIDDLEWARE": own},
            "missing": {"ROOT_URLCONF": URLS["async"], "MIDDLEWARE": [*own, "shop.views.Gone"]},
        }
    )["found"]
    assert {name: ids(messages) for name, messages in found.items()} == {
        "own": ["W005"],
        "django's": [],
        "sync views": [],
        "missing": [],
    }
    assert found["own"][0]["msg"].startswith(
        "shop.views.SyncOnly, shop.views.factory is sync-only middleware around async views "
        "(shop.views.waits, shop.views.AsyncView, shop.views.apart_async): "
    )


HELD = """
async def get(app, path):
    said, messages = [], [{"type": "http.request", "body": b"", "more_body": False}]
    async def receive():
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
    async def send(message):
        said.append(message)
    await app(
        {"type": "http", "asgi": {"version": "3.0"}, "method": "GET", "path": path, "headers": []},
        receive,
        send,
    )
    return said[1]["body"].decode()

async def wait_for(true):
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("that does not happen")

async def main(middleware):
    from shop import views
    views.came, views.go = asyncio.Event(), asyncio.Event()
    with override_settings(MIDDLEWARE=middleware, ROOT_URLCONF="urls_sleeps_plain"):
        app = lifeguard.wrap(get_asgi_application())
        slow = asyncio.create_task(get(app, "/inner/sleeps"))
        await views.came.wait()
        fast = asyncio.create_task(get(app, "/inner/plain"))
        def state():
            status = lifeguard.django.status()
            waiting = [each["by"] for each in status["waiting"]]
            return [(lane["state"], lane["by"]) for lane in status["lanes"]], waiting
        free = [("free", None)]
        await wait_for(lambda: state()[1] or (fast.done() and state()[0] == free))
        print(fast.done(), *state())
        views.go.set()
        print(await slow, await fast)

asyncio.run(main([]))
asyncio.run(main(["shop.views.SyncOnly"]))
"""


def test_what_the_finding_about_middleware_says_is_true(views: Project) -> None:
    """One lane: a view that sleeps leaves it to others, unless there is such middleware."""
    views.set(ALLOWED_HOSTS=["*"], LIFEGUARD={"LANES": 1})
    imports = "import lifeguard.django\nfrom django.test import override_settings\n"
    done = views.script(REQUESTS + imports + HELD)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "True [('free', None)] []",
        "slept plain",
        "False [('busy', 'GET /inner/sleeps')] ['GET /inner/plain']",
        "slept plain",
    ]


def test_sync_only_middleware_under_wsgi_is_as_it_should_be(views: Project) -> None:
    """There everything has a thread of its own anyway."""
    views.write("shop/asgi.py", "")
    views.wrap("wsgi")
    case = {"ROOT_URLCONF": URLS["async"], "MIDDLEWARE": ["shop.views.SyncOnly"]}
    assert views.ask({"wsgi": case})["found"]["wsgi"] == []


# -- versions -------------------------------------------------------------------------------------


def fake(folder: Path, **versions: str) -> str:
    """Packages by their metadata alone, in a folder for the front of PYTHONPATH."""
    for package, version in versions.items():
        name = package.replace("_", "-")
        info = folder / f"{package}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return str(folder)


OLD = {"Django": "5.0.1", "asgiref": "3.9.0", "granian": "1.4.4", "psycopg_pool": "3.2.6"}
FIXED = {"Django": "5.0.2", "asgiref": "3.12.0", "psycopg_pool": "3.2.7"}


def test_versions_that_leak(project: Project, tmp_path: Path) -> None:
    """W007 names the version, what it does and where it is repaired; only where it matters."""
    pool = {"DATABASES": {"default": pg_database(OPTIONS=POOL)}}
    cases: dict[str, Any] = {"asgi": {**pool, **ASGI}, "wsgi": {}}

    def ask(**versions: str) -> dict[str, list[str]]:
        folder = tmp_path / "-".join(versions.values())
        path = f"{fake(folder, **versions)}:{project.folder}:{ROOT}"
        found = project.ask(cases, env={"PYTHONPATH": path})["found"]
        return {
            name: [m["msg"].partition(" ")[0] for m in messages if m["id"] == "lifeguard.W007"]
            for name, messages in found.items()
        }

    old = ask(**OLD)
    assert old == {
        "asgi": ["Django", "asgiref", "psycopg-pool"],
        "wsgi": ["Django", "granian"],
    }
    assert ask(**{**FIXED, "granian": "2.1.2"}) == {"asgi": [], "wsgi": ["granian"]}

    project.wrap("asgi", "wsgi")
    assert ask(**{**OLD, "psycopg_pool": "3.2.5"}) == {
        "asgi": ["Django", "psycopg-pool"],  # no lane is ever shut down with a request
        "wsgi": ["Django", "granian"],
    }


# -- the first request ----------------------------------------------------------------------------

FIRST = {
    "wsgi(get_wsgi_application())": ["W001"],
    "asgi(get_asgi_application())": ["W001", "W002"],
    "wsgi(lifeguard.wrap(get_wsgi_application()))": [],
    "asgi(lifeguard.wrap(get_asgi_application()))": [],
    "asgi(lifeguard.Lifeguard().wrap(get_asgi_application()))": ["W001", "W002"],
    "Client().get('/')": [],
    "wsgi(get_wsgi_application()) or setup_test_environment": [],
}


def test_a_server_without_wrap_says_so_at_its_first_request(project: Project) -> None:
    """Servers run no checks. It is said once per process, and not in tests."""
    project.set(ALLOWED_HOSTS=["*"], DATABASES={"default": pg_database(CONN_MAX_AGE=60)})
    code = ""
    for name in FIRST:
        code += f"print({name!r}, file=sys.stderr)\n"
        code += "setup_test_environment()\n" if "setup" in name else ""
        code += f"check.watch_first_request()\nfor _ in 1, 2: {name}\n"
    done = project.script(f"{REQUESTS}\n{code}")
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = {}
    for line in done.stderr.splitlines():
        if line in FIRST:
            said = found[line] = []
        elif id := re.match(r"\(lifeguard\.(\w+)\) ", line):
            said.append(id[1])
    assert found == FIRST
    assert "do not pass the guard that lifeguard.django belongs to, but another one" in done.stderr


# -- the pages ------------------------------------------------------------------------------------


def test_every_check_has_a_page_and_every_page_a_check() -> None:
    """With what it means, how it shows, and what to do; and a line in the index."""
    source = "".join(
        (ROOT / "lifeguard" / "django" / name).read_text() for name in ("checks.py", "_settings.py")
    )
    known = set(re.findall(r'"(?:lifeguard\.)?([EW]\d{3})"', source))
    assert {page.stem for page in PAGES.glob("*.md")} == known | {"index", "command"}
    index = (PAGES / "index.md").read_text()
    for id in known:
        assert f"[lifeguard.{id}]({id}.md)" in index
        text = (PAGES / f"{id}.md").read_text()
        assert text.startswith(f"# lifeguard.{id}: ")
        headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
        wanted = ["What it means", "How it shows", "What to do"]
        assert headings == wanted + (["Silence it"] if id.startswith("W") else []), id
        if id.startswith("W"):
            assert f'SILENCED_SYSTEM_CHECKS = ["lifeguard.{id}"]' in text
