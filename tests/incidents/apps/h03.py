"""A view that calls a health check: its own thread runs it, or another one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, JsonResponse
from django.urls import path

from tests.incidents.apps import GUARDED
from tests.incidents.apps.django_left import left
from tests.incidents.apps.django_site import configure, make_app

configure(__name__)

from django.db import connection, connections, transaction  # noqa: E402


def query():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def check():
    try:
        return query()
    finally:
        if not GUARDED:
            connections.close_all()  # the check may run in a thread of its own


if GUARDED:
    import lifeguard

    check = lifeguard.task(check)


def view(request):
    before = query()
    with transaction.atomic():
        query()
    check()
    return JsonResponse({"before": before, "after": query()})


def transfer(request):
    """The check is the last thing in a transaction."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS pg_temp.entries (n int)")
            cursor.execute("INSERT INTO entries VALUES (1)")
        check()
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM entries")
            return HttpResponse(cursor.fetchone()[0])
    except Exception as exc:
        return HttpResponse(type(exc).__name__)


executor = ThreadPoolExecutor(1)


def threaded(request):
    executor.submit(check).result()
    return HttpResponse(left())


urlpatterns = [path("", view), path("transfer", transfer), path("threaded", threaded)]
app = make_app(get_wsgi_application)
