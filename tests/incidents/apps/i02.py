"""A chat of Channels: each message is counted by the ORM's async methods."""

from __future__ import annotations

from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path

from tests.incidents.apps.django_site import configure, make_app

configure(__name__)

from asgiref.sync import sync_to_async  # noqa: E402
from django.db import connection  # noqa: E402


def query():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


class Chat(AsyncWebsocketConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        await self.send(str(await sync_to_async(query)()))


urlpatterns: list[object] = []
app = make_app(
    lambda: ProtocolTypeRouter(
        {"http": get_asgi_application(), "websocket": URLRouter([path("", Chat.as_asgi())])}
    )
)
