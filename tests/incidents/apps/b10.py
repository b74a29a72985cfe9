"""A report that Django streams through a profiler's middleware, which forgets ``close()``."""

from __future__ import annotations

from django.core.wsgi import get_wsgi_application
from django.http import StreamingHttpResponse
from django.urls import path

from tests.incidents.apps.django_site import configure, make_app

configure(__name__)

from django.db import connection  # noqa: E402


def report(request):
    def lines():
        with connection.cursor() as cursor:
            cursor.execute("SELECT generate_series(1, 3)::text")
            for (line,) in cursor:
                yield line

    return StreamingHttpResponse(lines())


def profiled(app):
    def middleware(environ, start_response):
        sizes = []
        for chunk in app(environ, start_response):
            sizes.append(len(chunk))
            yield chunk

    return middleware


urlpatterns = [path("", report)]
app = make_app(get_wsgi_application, profiled)
