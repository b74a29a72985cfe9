"""A Django site whose one page asks the database and says which backend answered."""

from __future__ import annotations

import gc
from typing import Any

import django
from django.conf import settings
from django.db import connection
from django.http import HttpResponse
from django.urls import path

from tests.django.databases import database
from tests.incidents.apps import DSN, GUARDED

LANES = 2


def index(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return HttpResponse(str(cursor.fetchone()[0]))


urlpatterns = [path("", index)]


def make_app(*, age: int) -> Any:
    gc.disable()  # or chance would close some of what is left behind
    settings.configure(
        ROOT_URLCONF=__name__,
        SECRET_KEY="test",
        ALLOWED_HOSTS=["*"],
        USE_TZ=True,
        DATABASES={"default": database(DSN, CONN_MAX_AGE=age)},
        INSTALLED_APPS=["lifeguard.django"] if GUARDED else [],
        LIFEGUARD={"LANES": LANES},
    )
    django.setup()
    from django.core.asgi import get_asgi_application

    app = get_asgi_application()
    if GUARDED:
        import lifeguard

        app = lifeguard.wrap(app)
    return app
