"""A Django site on daphne that keeps its connections for a minute."""

from __future__ import annotations

import gc

from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path

from tests.incidents.apps.django_site import configure, make_app

gc.disable()  # or chance would close some of what is left behind
configure(__name__, CONN_MAX_AGE=60)

from django.db import connection  # noqa: E402


def index(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return HttpResponse(str(cursor.fetchone()[0]))


urlpatterns = [path("", index)]
app = make_app(get_asgi_application)
