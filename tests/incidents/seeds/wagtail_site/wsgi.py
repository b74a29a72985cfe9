from __future__ import annotations

from django.conf import settings
from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()

if settings.GUARDED:
    import lifeguard

    application = lifeguard.wrap(application)
