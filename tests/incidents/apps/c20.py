"""A chat's event stream, which looks up who may read it by ``asyncio.to_thread``."""

from __future__ import annotations

import asyncio
import threading

from django.core.asgi import get_asgi_application
from django.http import StreamingHttpResponse
from django.urls import path

from tests.incidents.apps import log
from tests.incidents.apps.django_site import configure, make_app

TABS = 4

configure(__name__)

from django.db import connection  # noqa: E402

together = threading.Barrier(TABS)  # as many threads as tabs


def may_read():
    with connection.cursor() as cursor:
        cursor.execute("SELECT true")
        (allowed,) = cursor.fetchone()
    together.wait(timeout=40)
    return allowed


async def stream(request):
    assert await asyncio.to_thread(may_read)

    async def events():
        yield "data: hello\n\n"
        log.write("streaming")
        await asyncio.Event().wait()

    return StreamingHttpResponse(events(), content_type="text/event-stream")


urlpatterns = [path("", stream)]
app = make_app(get_asgi_application)
