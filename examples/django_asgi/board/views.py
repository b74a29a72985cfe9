"""Views of each kind. None of them knows of lifeguard, except the one that shows the lanes."""

import asyncio
import itertools
from collections.abc import AsyncIterator

from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse

import lifeguard.django
from board.models import Message


def post(request: HttpRequest, text: str) -> JsonResponse:
    """A sync view: it runs in one of the lanes, and the transaction stays there to its end."""
    with transaction.atomic():
        message = Message.objects.create(text=text)
        Message.objects.filter(pk=message.pk - 1).update(answers=1)
    return JsonResponse({"id": message.pk})


async def messages(request: HttpRequest) -> HttpResponse:
    """An async view: only its query runs in a lane."""
    lines = [
        f"{text}\n" async for text in Message.objects.order_by("pk").values_list("text", flat=True)
    ]
    return HttpResponse("".join(lines), content_type="text/plain")


async def live(request: HttpRequest) -> StreamingHttpResponse:
    """New messages as they come. Between two looks the tab holds no lane and no connection."""

    async def events() -> AsyncIterator[str]:
        seen = 0
        for beat in itertools.count():
            async for message in Message.objects.filter(pk__gt=seen).order_by("pk"):
                seen = message.pk
                yield f"id: {message.pk}\ndata: {message.text}\n\n"
            if beat % 50 == 0:
                yield ": still there\n\n"
            await asyncio.sleep(0.2)

    return StreamingHttpResponse(events(), content_type="text/event-stream")


async def export(request: HttpRequest) -> StreamingHttpResponse:
    """How not to do it: this stream breaks. Django alone would lose its connection."""

    async def rows() -> AsyncIterator[str]:
        yield f"messages: {await Message.objects.acount()}\n"
        raise ValueError("a message that cannot be exported")

    return StreamingHttpResponse(rows(), content_type="text/plain")


tasks: set[asyncio.Task[None]] = set()


async def count(request: HttpRequest) -> HttpResponse:
    """Answer at once, and work on: what the task takes out afterwards goes back at its own end."""

    async def work() -> None:
        await asyncio.sleep(0.1)
        number = await Message.objects.acount()
        await Message.objects.acreate(text=f"{number} messages so far")

    task = asyncio.create_task(work())
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return HttpResponse(status=202)


async def lanes(request: HttpRequest) -> JsonResponse:
    return JsonResponse(lifeguard.django.status())
