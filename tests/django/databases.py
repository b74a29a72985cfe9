"""A Django ``DATABASES`` entry for the PostgreSQL of the tests."""

from __future__ import annotations

from typing import Any

from psycopg.conninfo import conninfo_to_dict

_KEYS = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}


def database(dsn: str, *, application_name: str | None = None, **more: Any) -> dict[str, Any]:
    """The entry that connects as *dsn* does. *more* are its other keys, such as CONN_MAX_AGE."""
    parts = dict(conninfo_to_dict(dsn))
    entry: dict[str, Any] = {"ENGINE": "django.db.backends.postgresql"}
    entry |= {_KEYS[key]: str(value) for key, value in parts.items() if key in _KEYS}
    options = {key: value for key, value in parts.items() if key not in _KEYS}
    if application_name is not None:
        options["application_name"] = application_name
    options |= more.pop("OPTIONS", {})
    return {**entry, **more, "OPTIONS": options}
