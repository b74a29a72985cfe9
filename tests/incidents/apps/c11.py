"""Pages that keep a stream open in their tab, a home page, and a health check without a query."""

from __future__ import annotations

import asyncio

from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path

from tests.incidents.apps import PATIENCE, log
from tests.incidents.apps.django_site import configure, make_app

pool = {"min_size": 1, "max_size": 4, "timeout": PATIENCE}
configure(__name__, OPTIONS={"pool": pool})

from django.db import connection  # noqa: E402


def query():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


async def tab(request):
    async def events():
        await sync_to_async(query)()
        yield "data: welcome\n\n"
        log.write("streaming")
        await asyncio.Event().wait()

    return StreamingHttpResponse(events(), content_type="text/event-stream")


def home(request):
    try:
        query()
    except Exception as exc:
        return HttpResponse(str(exc), status=500)
    return HttpResponse("ok")


def health(request):
    return HttpResponse("healthy")


urlpatterns = [path("", home), path("tab", tab), path("health", health)]
app = make_app(get_asgi_application)
