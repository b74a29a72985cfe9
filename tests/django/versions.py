"""The Djangos that are tested: that of the environment, and the others that this Python can run."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version

from tests.support.overlay import ROOT, overlay

HERE = version("django")

_NEWEST_PYTHON = {"4.2": (3, 12), "5.2": (3, 14), "6.0": (3, 14)}
_OLDEST_PYTHON = {"6.0": (3, 12)}


def _others() -> list[str]:
    python = sys.version_info[:2]
    return [
        django
        for django, newest in _NEWEST_PYTHON.items()
        if _OLDEST_PYTHON.get(django, (3, 0)) <= python <= newest and not HERE.startswith(django)
    ]


OTHERS = _others()


def python_path(django: str) -> str:
    """PYTHONPATH of a process that is to run on this Django."""
    if django == HERE:
        return str(ROOT)
    return os.pathsep.join((str(overlay(f"django{django.replace('.', '')}")), str(ROOT)))
