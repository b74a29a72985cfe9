"""A Django site that looks something up at import, for a server that imports it before it forks."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

from tests.incidents.apps import log
from tests.incidents.apps.django_site import configure, make_app

configure(__name__, CONN_MAX_AGE=300)

from django.db import connection  # noqa: E402


def ask() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 'ok'")
        return cursor.fetchone()[0]


ask()  # plugins to load, say


def index(request):
    try:
        return HttpResponse(ask())
    except Exception as exc:
        return HttpResponse(str(exc), status=500)
    finally:
        log.write("served", worker=os.getpid())


urlpatterns = [path("", index)]
app = make_app(get_wsgi_application)
