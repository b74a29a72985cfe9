"""A Django site whose answers take a while: each of them waits for somebody else."""

from __future__ import annotations

import os
import time
from pathlib import Path

from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path

from tests.incidents.apps import log
from tests.incidents.apps.django_site import configure, make_app

configure(__name__)
gate = Path(os.environ["LIFEGUARD_EVENTLOG"]).with_suffix(".gate")

from django.db import connection  # noqa: E402


def call(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    log.write("working")
    deadline = time.monotonic() + 60
    while not gate.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return HttpResponse("ok")


urlpatterns = [path("", call)]
app = make_app(get_asgi_application)
