"""A site that has got Channels: pages and websockets on daphne, and CONN_MAX_AGE as before."""

from __future__ import annotations

import gc

from channels.generic.websocket import WebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path

from tests.incidents.apps.django_site import configure, make_app

gc.disable()  # a quiet process hardly collects
configure(__name__, CONN_MAX_AGE=60)

from django.db import connection  # noqa: E402


def query():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def page(request):
    return HttpResponse(query())


class Chat(WebsocketConsumer):
    def receive(self, text_data=None, bytes_data=None):
        self.send(str(query()))


urlpatterns = [path("", page)]
app = make_app(
    lambda: ProtocolTypeRouter(
        {"http": get_asgi_application(), "websocket": URLRouter([path("", Chat.as_asgi())])}
    )
)
