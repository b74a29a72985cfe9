"""A Django project in one file, for the incidents that are Django's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import django
from django.conf import settings
from psycopg.conninfo import conninfo_to_dict

from tests.django.databases import database
from tests.incidents.apps import DSN, GUARDED

SIDE = os.environ["INCIDENT_SIDE"]
NAME = f"{conninfo_to_dict(DSN)['application_name']}{SIDE}"
"""What PostgreSQL calls the connections of this side."""


def configure(
    urls: str, *, lanes: int = 4, more: dict[str, Any] | None = None, **options: Any
) -> None:
    """Set Django up for the module *urls*. *more* are settings, *options* those of DATABASES."""
    more = dict(more or {})
    if GUARDED:
        more["INSTALLED_APPS"] = [*more.get("INSTALLED_APPS", []), "lifeguard.django"]
        more["LIFEGUARD"] = {"LANES": lanes}
    databases = {"default": database(DSN, application_name=NAME, **options)}
    settings.configure(
        **{
            "SECRET_KEY": "test",
            "ALLOWED_HOSTS": ["*"],
            "USE_TZ": True,
            "ROOT_URLCONF": urls,
            "DATABASES": databases,
            **more,
        }
    )
    django.setup()


def make_app(get_application: Callable[[], Any], around: Callable[[Any], Any] | None = None) -> Any:
    """The app, which lifeguard wraps on one side. *around* is a middleware of the incident's."""
    app = get_application()
    if around is not None:
        app = around(app)
    if GUARDED:
        import lifeguard

        app = lifeguard.wrap(app)
    return app
