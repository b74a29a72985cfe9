from __future__ import annotations

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application

django_application = get_asgi_application()

from .celery_app import app as celery_app  # noqa: E402
from .urls import websocket_urlpatterns  # noqa: E402

celery_app.set_default()
application = ProtocolTypeRouter(
    {
        "http": django_application,
        "websocket": AuthMiddlewareStack(URLRouter(websocket_urlpatterns)),
    }
)

if settings.GUARDED:
    import lifeguard

    application = lifeguard.wrap(application)
