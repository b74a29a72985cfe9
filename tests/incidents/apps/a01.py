"""A Django site that keeps its connections for a minute."""

from __future__ import annotations

from tests.incidents.apps.persistent import make_app

app = make_app(age=60)
