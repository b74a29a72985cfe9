"""A page for what is not found, which looks up who is not finding it."""

from __future__ import annotations

from django.core.asgi import get_asgi_application
from django.core.signals import request_finished
from django.http import HttpResponse
from django.urls import path

from tests.incidents.apps import log
from tests.incidents.apps.django_site import configure, make_app

configure(__name__)

from django.db import connection  # noqa: E402


def index(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return HttpResponse("ok")


def not_found(request, exception):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    log.write("query of the error page")
    return HttpResponse("not here", status=404)


def finished(**kwargs):
    log.write("finished")


request_finished.connect(finished)
handler404 = not_found
urlpatterns = [path("", index)]
app = make_app(get_asgi_application)
