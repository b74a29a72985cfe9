"""A Django site that dares to keep its connections where lifeguard is, and only there."""

from __future__ import annotations

from tests.incidents.apps import GUARDED
from tests.incidents.apps.persistent import make_app

app = make_app(age=60 if GUARDED else 0)
