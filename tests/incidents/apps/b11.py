# ruff: noqa: E402
"""An export that notes its end in the database, streamed through a middleware that throttles it."""

from __future__ import annotations

import asyncio
import gc
import os
import sys

sys.path[:0] = filter(None, [os.environ.get("INCIDENT_OVERLAY")])  # another Django

from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application
from django.http import StreamingHttpResponse
from django.urls import path
from django.utils.decorators import async_only_middleware

from tests.incidents.apps import log
from tests.incidents.apps.django_site import configure, make_app

gc.disable()  # or chance would close some of what is left behind
configure(__name__, more={"MIDDLEWARE": [f"{__name__}.throttling"]})

from django.db import connection


@sync_to_async
def note(what):
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s", [what])
    log.write(what)


async def export(request):
    async def rows():
        await note("begun")
        try:
            for _ in range(100):
                yield b"a row\n"
        finally:
            await note("ended")

    return StreamingHttpResponse(rows())


@async_only_middleware
def throttling(get_response):
    async def middleware(request):
        response = await get_response(request)
        response.streaming_content = throttled(response.streaming_content)
        return response

    return middleware


async def throttled(chunks):
    async for chunk in chunks:  # left in the middle: it does not close what it loops over
        yield chunk
        log.write("streaming")
        await asyncio.sleep(60)


urlpatterns = [path("", export)]
app = make_app(get_asgi_application)
