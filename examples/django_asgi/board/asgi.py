"""The message board as an ASGI application: requests to Django, websockets to Channels.

Start it with ``python examples/run.py django_asgi``, or on a PostgreSQL of your own::

    export LIFEGUARD_DSN=postgresql://...
    cd examples/django_asgi
    python manage.py migrate
    uvicorn board.asgi:application
"""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "board.settings")
django = get_asgi_application()  # before the consumers: they need the models

from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path  # noqa: E402

import lifeguard  # noqa: E402
from board.consumers import Chat  # noqa: E402

application = ProtocolTypeRouter(
    {"http": django, "websocket": URLRouter([path("chat", Chat.as_asgi())])}
)
application = lifeguard.wrap(application)
