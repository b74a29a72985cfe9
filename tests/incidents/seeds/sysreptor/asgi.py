from __future__ import annotations

from django.conf import settings
from django.core.asgi import get_asgi_application

application = get_asgi_application()

if settings.GUARDED:
    import lifeguard

    application = lifeguard.wrap(application)
