"""A Django site whose pool is open before the server forks, and grows when it is needed."""

from __future__ import annotations

from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

from tests.incidents.apps import PATIENCE, log
from tests.incidents.apps.django_site import configure, make_app

configure(__name__, OPTIONS={"pool": {"min_size": 1, "max_size": 5, "timeout": PATIENCE}})

from django.db import connection  # noqa: E402

connection.pool.open()
connection.pool.wait()  # fail early, as its documentation advises


def index(request):
    key = request.GET.get("wait")
    try:
        with connection.cursor() as cursor:
            if key:  # a page that takes its time
                log.write("slow")
                cursor.execute("SELECT pg_advisory_lock_shared(%s)", [int(key)])
        return HttpResponse("ok")
    except Exception as exc:
        return HttpResponse(str(exc), status=504)


urlpatterns = [path("", index)]
app = make_app(get_wsgi_application)
