"""The app for INSTALLED_APPS. It attaches lifeguard's guard to Django when Django is ready."""

from __future__ import annotations

import importlib

from django.apps import AppConfig


class LifeguardConfig(AppConfig):
    name = "lifeguard.django"
    label = "lifeguard"
    verbose_name = "lifeguard"

    def ready(self) -> None:
        from . import _host

        importlib.import_module("lifeguard.django.checks")  # which registers them
        _host.attach()
