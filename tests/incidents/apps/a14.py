"""A reader of comics with an SQLite database, which it keeps open for ten minutes."""

from __future__ import annotations

import gc
import os
from pathlib import Path

from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path

from tests.incidents.apps.django_site import configure, make_app

gc.disable()  # or chance would close some of what is left behind
FILE = Path(os.environ["LIFEGUARD_EVENTLOG"]).with_suffix(".sqlite")
DATABASE = {"ENGINE": "django.db.backends.sqlite3", "NAME": FILE, "CONN_MAX_AGE": 600}
configure(__name__, more={"DATABASES": {"default": DATABASE}})

from django.db import connection  # noqa: E402


def cover(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM sqlite_master")
        cursor.fetchall()
    return HttpResponse("a cover")


urlpatterns = [path("", cover)]
app = make_app(get_asgi_application)
