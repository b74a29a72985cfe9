"""Websockets behind a middleware that looks a token up, before there is a consumer."""

from __future__ import annotations

from asgiref.sync import sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path

from tests.incidents.apps import log
from tests.incidents.apps.django_site import configure, make_app

configure(__name__)

from django.db import connection  # noqa: E402


def get_user(token):
    with connection.cursor() as cursor:
        cursor.execute("SELECT CASE WHEN %s = 'secret' THEN 'ann' END, pg_backend_pid()", [token])
        user, backend = cursor.fetchone()
    log.write("looked up", backend=backend)
    return user


class TokenMiddleware:
    def __init__(self, inner):
        self.inner = inner

    async def __call__(self, scope, receive, send):
        token = scope["query_string"].decode()
        try:
            scope["user"] = await sync_to_async(get_user)(token)
        except Exception as exc:
            log.write("failed", error=type(exc).__name__)
            scope["user"] = None
        if scope["user"] is None:
            await send({"type": "websocket.close"})
            return
        await self.inner(scope, receive, send)


class Hello(AsyncWebsocketConsumer):
    async def connect(self):
        await self.accept()
        await self.send(f"hello {self.scope['user']}")

    async def disconnect(self, code):
        log.write("left")


urlpatterns: list[object] = []
app = make_app(
    lambda: ProtocolTypeRouter(
        {
            "http": get_asgi_application(),
            "websocket": TokenMiddleware(URLRouter([path("", Hello.as_asgi())])),
        }
    )
)
