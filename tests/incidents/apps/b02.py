"""A Django site that counts the requests that started, and those that finished."""

from __future__ import annotations

import asyncio

from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application
from django.core.signals import request_finished, request_started
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path

from tests.incidents.apps import log
from tests.incidents.apps.django_site import configure, make_app

configure(__name__)

from django.db import connection  # noqa: E402


@sync_to_async
def ask():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


async def index(request):
    await ask()
    return HttpResponse("ok")


async def view(request):
    await ask()
    log.write("in view")
    await asyncio.sleep(60)


async def stream(request):
    async def chunks():
        await ask()
        yield "one\n"
        log.write("in stream")
        await asyncio.sleep(60)

    return StreamingHttpResponse(chunks())


async def failing(request):
    async def chunks():
        await ask()
        yield "one\n"
        raise RuntimeError("the source of this stream has dried up")

    return StreamingHttpResponse(chunks())


def started(**kwargs):
    log.write("started")


def finished(**kwargs):
    log.write("finished")


request_started.connect(started)
request_finished.connect(finished)

urlpatterns = [
    path("", index),
    path("view", view),
    path("stream", stream),
    path("failing", failing),
]
app = make_app(get_asgi_application)
