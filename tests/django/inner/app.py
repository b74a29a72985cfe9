"""Views and a consumer."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.contrib.auth.models import User
from django.core.asgi import get_asgi_application
from django.db import transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path


def users(request: HttpRequest) -> HttpResponse:
    return HttpResponse(User.objects.count())


async def ausers(request: HttpRequest) -> HttpResponse:
    first = await User.objects.acount()
    second, third = await asyncio.gather(User.objects.acount(), User.objects.acount())
    return HttpResponse(f"{first} {second} {third}")


def join(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        User.objects.create(username=request.GET["name"])
        transaction.on_commit(lambda: committed.append(request.GET["name"]))
    return HttpResponse("joined")


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    async def names() -> Any:
        async for user in User.objects.order_by("username"):
            yield f"{user.username}\n"

    return StreamingHttpResponse(names())


def fail(request: HttpRequest) -> HttpResponse:
    raise RuntimeError(f"{User.objects.count()} users")


committed: list[str] = []
urlpatterns = [
    path("users", users),
    path("ausers", ausers),
    path("join", join),
    path("stream", stream),
    path("fail", fail),
]


class Sync(JsonWebsocketConsumer):
    def receive_json(self, content: Any, **kwargs: Any) -> None:
        self.send_json({"users": User.objects.count()})


class Async(AsyncJsonWebsocketConsumer):
    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        counts = [await User.objects.acount(), await database_sync_to_async(User.objects.count)()]
        await self.send_json({"users": counts})


application: Any = ProtocolTypeRouter(
    {
        "http": get_asgi_application(),
        "websocket": URLRouter([path("sync", Sync.as_asgi()), path("async", Async.as_asgi())]),
    }
)

consumer: Any = Async.as_asgi()

if os.environ["INNER_GUARDED"]:
    import lifeguard

    application = lifeguard.wrap(application)
    consumer = lifeguard.wrap(consumer)
