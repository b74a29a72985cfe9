"""The project as a server sees it. What follows ``if`` is what lifeguard adds."""

from __future__ import annotations

import gc
import os

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.django.channels.settings"

from django.core.asgi import get_asgi_application

# What only the garbage collector would close stays open, on both sides.
gc.disable()

http = get_asgi_application()

from asgiref.sync import async_to_sync  # noqa: E402
from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.layers import get_channel_layer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.conf import settings  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.http import HttpRequest, HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402

from tests.django.channels import consumers  # noqa: E402


def say(request: HttpRequest) -> HttpResponse:
    """A page that tells a room."""
    users = User.objects.count()
    message = {"type": "room.message", "text": request.GET["text"]}
    async_to_sync(get_channel_layer().group_send)(request.GET["room"], message)
    return HttpResponse(str(users))


urlpatterns = [path("say", say)]

application = ProtocolTypeRouter(
    {
        "http": http,
        "websocket": URLRouter(
            [
                path("anonymous", consumers.Async.as_asgi()),
                path("sync", AuthMiddlewareStack(consumers.Sync.as_asgi())),
                path("async", AuthMiddlewareStack(consumers.Async.as_asgi())),
                path("own-context", AuthMiddlewareStack(consumers.OwnContext.as_asgi())),
            ]
        ),
    }
)

if settings.GUARDED:
    import lifeguard

    application = lifeguard.wrap(application)
