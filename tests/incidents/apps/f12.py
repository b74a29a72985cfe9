"""A Django site to be preloaded: while it is loaded, it asks the database."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from django.urls import path

from tests.incidents.apps.django_site import configure, make_app

configure(__name__, CONN_MAX_AGE=600)

from django.db import connection  # noqa: E402


def backend() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


master = backend()  # feature flags, say


def index(request):
    return JsonResponse({"worker": os.getpid(), "backend": backend(), "master": master})


urlpatterns = [path("", index)]
app = make_app(get_wsgi_application)
