"""An async class-based view with a function that must not run twice at a time."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application
from django.http import JsonResponse
from django.urls import path
from django.views import View

from tests.incidents.apps import log
from tests.incidents.apps.django_site import configure, make_app
from tests.support.eventlog import thread_mark

configure(__name__, lanes=1, CONN_MAX_AGE=60)

from django.db import connection  # noqa: E402

both = threading.Barrier(2)


def f():
    """Not thread-safe, which is why it is called with ``thread_sensitive=True``."""
    log.wait_count("visit", 2)
    log.write("enter f")
    with contextlib.suppress(threading.BrokenBarrierError):
        both.wait(timeout=4)  # time for another one to come in here as well
    log.write("exit f")
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return thread_mark(), cursor.fetchone()[0]


def mark():
    return thread_mark()


class MyView(View):
    async def get(self, request):
        log.write("visit")
        thread, backend = await sync_to_async(f, thread_sensitive=True)()

        async def nested():
            return await asyncio.gather(*(sync_to_async(mark)() for _ in range(3)))

        marks = await asyncio.create_task(nested())
        return JsonResponse({"threads": sorted({thread, *marks}), "backend": backend})


urlpatterns = [path("", MyView.as_view())]
app = make_app(get_asgi_application)
