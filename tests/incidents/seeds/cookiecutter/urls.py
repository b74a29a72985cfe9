from __future__ import annotations

from functools import partial

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from .models import Order
from .tasks import send


def home(request: HttpRequest) -> HttpResponse:
    request.session["visits"] = request.session.get("visits", 0) + 1
    return JsonResponse({"orders": Order.objects.count(), "user": str(request.user)})


def order(request: HttpRequest) -> HttpResponse:
    order = Order.objects.create()
    transaction.on_commit(partial(send.delay, order.pk))
    return JsonResponse({"order": order.pk})


class Orders(AsyncWebsocketConsumer):
    """A tab that wants to know how many there are, whenever it asks."""

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.send(str(await database_sync_to_async(Order.objects.count)()))


urlpatterns = [path("", home), path("order", order)]
websocket_urlpatterns = [path("ws/orders", Orders.as_asgi())]
