"""``manage.py check --deploy`` of a site for ASGI that keeps its connections, and does not wrap."""

from __future__ import annotations

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.management import call_command

from tests.django.databases import database
from tests.incidents.apps import DSN, GUARDED

ASGI_APPLICATION = f"{__spec__.name}.application"

if __name__ == "__main__":
    settings.configure(
        SECRET_KEY="test",
        USE_TZ=True,
        ASGI_APPLICATION=ASGI_APPLICATION,
        DATABASES={"default": database(DSN, CONN_MAX_AGE=60)},
        INSTALLED_APPS=["lifeguard.django"] if GUARDED else [],
    )
    django.setup()
    call_command("check", "--deploy")
else:
    application = get_asgi_application()
