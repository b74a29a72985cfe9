"""The project as a server sees it. What follows ``if`` is what lifeguard adds."""

from __future__ import annotations

import gc
import os

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.django.scenarios.settings"

from django.conf import settings
from django.core.asgi import get_asgi_application

# What only the garbage collector would close stays open, on both sides.
gc.disable()

application = get_asgi_application()

from django.core.signals import request_finished, request_started  # noqa: E402

from tests.django.scenarios import witness  # noqa: E402
from tests.django.scenarios.middleware import Outer  # noqa: E402

request_started.connect(witness.started)
request_finished.connect(witness.finished)
application = Outer(application)

if settings.GUARDED:
    import lifeguard

    application = lifeguard.wrap(application)
