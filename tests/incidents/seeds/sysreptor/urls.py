from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Coroutine

from asgiref.sync import sync_to_async
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.utils import timezone

from .models import Note, PeriodicTask

TASKS = ("clear-sessions", "cleanup-files", "activate-license")

running: set[asyncio.Task[None]] = set()


def answer(**body: object) -> JsonResponse:
    return JsonResponse(body, headers={"x-worker": str(os.getpid())})


def notes(request: HttpRequest) -> HttpResponse:
    return answer(notes=list(Note.objects.values_list("text", flat=True)))


async def poll(request: HttpRequest) -> HttpResponse:
    """A tab: what it has to know, a while in which nothing happens, and the same again."""
    before = await Note.objects.acount()
    await asyncio.sleep(0.2)
    return answer(news=await Note.objects.acount() - before)


async def healthcheck(request: HttpRequest) -> HttpResponse:
    await sync_to_async(is_database_reachable)()
    in_background(run_periodic_tasks())
    gc.collect()  # "memory cleanup of the worker process"
    return answer(status="ok")


def is_database_reachable() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def in_background(coroutine: Coroutine[object, object, None]) -> None:
    task = asyncio.create_task(coroutine)
    running.add(task)
    task.add_done_callback(running.discard)


async def run_periodic_tasks() -> None:
    for name in TASKS:
        task, _ = await PeriodicTask.objects.aget_or_create(name=name)
        task.completed = None
        await task.asave()
        task.completed = timezone.now()
        await task.asave()


async def idle(request: HttpRequest) -> HttpResponse:
    """Asks no database: whether this worker's housekeeping is done."""
    return answer(running=len(running))


urlpatterns = [
    path("notes", notes),
    path("poll", poll),
    path("healthcheck", healthcheck),
    path("idle", idle),
]
