"""The URLs of a site whose views are made while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.urls import ResolverMatch, URLPattern, path

views: dict[str, Callable[..., Any]] = {}
"""By path."""


class Views(URLPattern):
    """Django asks the view whether it is async, so each of them has to be found as itself."""

    def resolve(self, path: str) -> ResolverMatch | None:
        view = views.get(path)
        return view and ResolverMatch(view, (), {}, route=path, captured_kwargs={}, extra_kwargs={})


urlpatterns = [Views(path("", lambda request: None).pattern, lambda request: None)]
