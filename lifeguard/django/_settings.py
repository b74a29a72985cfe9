"""The ``LIFEGUARD`` setting: what it may say, and what it means where it says nothing.

It stands apart from the rest of the adapter so that the system checks can judge it without
starting anything, and so that one place knows every key.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module

from django.core.exceptions import ImproperlyConfigured

from .._core.errors import explain, redact
from .._wrap import Lifeguard

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

KEYS = ("LANES", "LANE_TIMEOUT", "EXECUTORS", "NAME", "GUARD")

LANES = 8  # where no native pool says how many connections there may be
LANE_TIMEOUT = 30.0
POOL_SIZE = 4  # psycopg_pool's own min_size, which is its max_size where none is given


@dataclass(frozen=True, slots=True)
class Options:
    """What ``settings.LIFEGUARD`` means, with nothing left out."""

    lanes: int
    lane_timeout: float
    executors: bool
    name: str
    guard: Lifeguard


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that ``settings.LIFEGUARD`` must not say. *id* is that of the system check."""

    id: str
    text: str


def read(settings: Any) -> Options:
    """The options of *settings*: everything that is not set has its default.

    Raises :exc:`~django.core.exceptions.ImproperlyConfigured` with all that is wrong.
    """
    wrong = problems(settings)
    if wrong:
        raise ImproperlyConfigured(" ".join(wrong))
    says = given(settings)
    lanes = says.get("LANES")
    timeout = says.get("LANE_TIMEOUT")
    return Options(
        lanes=default_lanes(settings) if lanes is None else lanes,
        lane_timeout=LANE_TIMEOUT if timeout is None else float(timeout),
        executors=bool(says.get("EXECUTORS")),
        name=says.get("NAME") or project(settings),
        guard=guard_at(says.get("GUARD")),
    )


def problems(settings: Any) -> list[str]:
    """What is wrong with ``settings.LIFEGUARD``, one sentence or two for each thing."""
    return [problem.text for problem in examine(settings)]


def examine(settings: Any) -> Iterator[Problem]:
    """The same with the ids of the system checks."""
    found = getattr(settings, "LIFEGUARD", None)
    if found is not None and not isinstance(found, dict):
        yield Problem(
            "lifeguard.E001",
            f"LIFEGUARD must be a dict such as {{'LANES': 8}}, not {_shown(found)}.",
        )
    says = given(settings)
    for key in says:
        if key not in KEYS:
            near = get_close_matches(str(key).upper(), KEYS, n=1)
            meant = f"Did you mean {near[0]!r}?" if near else f"It may have {', '.join(KEYS)}."
            yield Problem("lifeguard.E001", f"LIFEGUARD has the key {redact(repr(key))}. {meant}")
    lanes = says.get("LANES")
    if lanes is not None and not (_is_int(lanes) and lanes >= 1):
        yield Problem(
            "lifeguard.E002",
            f"LIFEGUARD['LANES'] must be a whole number, 1 or more, not {_shown(lanes)}: it is "
            "the number of connections that one worker may have to each database.",
        )
    timeout = says.get("LANE_TIMEOUT")
    if timeout is not None and not (_is_number(timeout) and 0 < timeout < math.inf):
        yield Problem(
            "lifeguard.E003",
            "LIFEGUARD['LANE_TIMEOUT'] must be a number of seconds above 0, not "
            f"{_shown(timeout)}: so long may work wait for a lane.",
        )
    executors = says.get("EXECUTORS")
    if executors is not None and not isinstance(executors, bool):
        yield Problem(
            "lifeguard.E004",
            f"LIFEGUARD['EXECUTORS'] must be True or False, not {_shown(executors)}.",
        )
    name = says.get("NAME")
    if name is not None and not (isinstance(name, str) and name.strip()):
        yield Problem(
            "lifeguard.E004",
            f"LIFEGUARD['NAME'] must be a string that is not empty, not {_shown(name)}: it is "
            "what PostgreSQL calls this project's connections.",
        )
    try:
        guard_at(says.get("GUARD"))
    except ImproperlyConfigured as exc:
        yield Problem("lifeguard.E005", str(exc))


def given(settings: Any) -> Mapping[str, Any]:
    """What is set, right or wrong."""
    found = getattr(settings, "LIFEGUARD", None)
    return found if isinstance(found, dict) else {}


def default_lanes(settings: Any) -> int:
    """As many lanes as the native pool of "default" has connections; 8 where there is none."""
    size = pool_size(_databases(settings).get("default"))
    return LANES if size is None else max(1, size)


def pool_size(database: Any) -> int | None:
    """The ``max_size`` of the native pool of one entry of DATABASES; None where there is none."""
    options = database.get("OPTIONS") if isinstance(database, dict) else None
    pool = options.get("pool") if isinstance(options, dict) else None
    if not pool:
        return None
    if not isinstance(pool, dict):  # True
        return POOL_SIZE
    size = pool.get("max_size")
    if size is None:
        size = pool.get("min_size", POOL_SIZE)
    return size if _is_int(size) else POOL_SIZE


def project(settings: Any) -> str:
    """The package of the settings module: the same name in every process of the project."""
    return package(settings) or "django"


def package(settings: Any) -> str:
    """``shop`` for ``shop.settings.production``; empty where there is no such package."""
    module = getattr(settings, "SETTINGS_MODULE", None)  # None while tests override settings
    first, dot, _ = (module or os.environ.get("DJANGO_SETTINGS_MODULE", "")).partition(".")
    return first if dot else ""


def _databases(settings: Any) -> Mapping[str, Any]:
    found = getattr(settings, "DATABASES", None)
    return found if isinstance(found, dict) else {}


def guard_at(path: Any) -> Lifeguard:
    """The guard at this dotted path, else the default one."""
    if path is None:
        from .. import _default

        return _default
    if not isinstance(path, str) or "." not in path:
        raise ImproperlyConfigured(
            "LIFEGUARD['GUARD'] must be the dotted path of a lifeguard.Lifeguard, such as "
            f"'project.guard.guard', not {_shown(path)}."
        )
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except Exception as exc:
        raise ImproperlyConfigured(
            f"LIFEGUARD['GUARD'] is {_shown(path)}, which cannot be imported: {explain(exc)}. "
            "Give the dotted path of a lifeguard.Lifeguard, such as 'project.guard.guard'."
        ) from exc
    if not isinstance(found, Lifeguard):
        raise ImproperlyConfigured(
            f"LIFEGUARD['GUARD'] is {_shown(path)}, which is a {type(found).__name__} and not a "
            "lifeguard.Lifeguard: guard = lifeguard.Lifeguard(...) makes one."
        )
    return found


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: object) -> str:
    text = redact(repr(value))
    return text if len(text) <= 80 else text[:77] + "..."
