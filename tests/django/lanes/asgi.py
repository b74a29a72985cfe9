"""The same on a real server, where requests come from sockets and the process ends by a signal."""

from __future__ import annotations

import logging
import os
import threading
import urllib.error
import urllib.request
from typing import Any

import django
from asgiref.sync import sync_to_async
from django.conf import settings

from tests.django.databases import database

LANES = 2
POOLED = os.environ["LANES_KEEPS"] == "in a pool"

_more: dict[str, Any] = (
    {"OPTIONS": {"pool": {"min_size": 1, "max_size": LANES}}} if POOLED else {"CONN_MAX_AGE": 60}
)

settings.configure(
    SECRET_KEY="test",
    ALLOWED_HOSTS=["*"],
    USE_TZ=True,
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["lifeguard.django"],
    MIDDLEWARE=[],
    DATABASES={
        "default": database(os.environ["APP_DSN"], application_name=os.environ["APP_NAME"], **_more)
    },
    LOGGING_CONFIG=None,
    LIFEGUARD={
        "LANES": LANES,
        "LANE_TIMEOUT": float(os.environ["LANES_TIMEOUT"]),
        "GUARD": "tests.django.lanes.guard.guard",
    },
)
logging.basicConfig(format="%(name)s: %(message)s")
django.setup()

from django.core.asgi import get_asgi_application  # noqa: E402
from django.db import connection, transaction  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402

from tests.django.lanes.guard import guard  # noqa: E402
from tests.django.scenarios.witness import await_gate, current, note, wait_at_gate  # noqa: E402

guard.grace = float(os.environ["LANES_GRACE"])


def ask() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def named(request: Any) -> None:
    current.set(request.GET.get("id", ""))


def asks(request: Any) -> HttpResponse:
    named(request)
    note("asks")
    return HttpResponse(str(ask()))


async def aasks(request: Any) -> HttpResponse:
    return HttpResponse(str(await sync_to_async(ask)()))


async def status(request: Any) -> HttpResponse:
    from lifeguard.django import status

    lanes = status()
    states = [lane["state"] for lane in lanes["lanes"]]
    return HttpResponse(f"{' '.join(sorted(states))}, {len(lanes['waiting'])} waiting")


async def holds(request: Any) -> HttpResponse:
    """A transaction that is open while the view waits for somebody."""
    named(request)
    block = transaction.atomic()
    await sync_to_async(block.__enter__)()
    await sync_to_async(ask)()
    note("working")
    await await_gate()
    await sync_to_async(block.__exit__)(None, None, None)
    return HttpResponse("done")


def busy(request: Any) -> HttpResponse:
    named(request)
    with transaction.atomic():
        ask()
        note("working")
        wait_at_gate()
        ask()
    note("left")
    return HttpResponse("done")


_meetings: dict[str, threading.Barrier] = {}


def asks_itself(request: Any) -> HttpResponse:
    """A page that is made of another page of the same site, fetched by HTTP."""
    named(request)
    parties = int(request.GET["parties"])
    ask()
    _meetings.setdefault(request.GET["at"], threading.Barrier(parties)).wait(10)
    url = f"http://127.0.0.1:{request.META['SERVER_PORT']}/asks"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=40) as answer:
            return HttpResponse(f"{answer.status}")
    except urllib.error.HTTPError as exc:
        return HttpResponse(f"{exc.code}")


urlpatterns = [
    path("asks", asks),
    path("aasks", aasks),
    path("status", status),
    path("holds", holds),
    path("busy", busy),
    path("asks-itself", asks_itself),
]

application = guard.wrap(get_asgi_application())
