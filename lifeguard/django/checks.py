"""System checks: what can be known about a project before it serves its first request.

Importing this module registers them under the tag ``lifeguard``, so that ``manage.py check`` and
all commands that run checks show them. Each has a page, docs/checks/<id>.md.

A check looks and does nothing else. It opens no connection, imports no database driver, and does
not import asgi.py or wsgi.py: their source is read instead, for an import would build the app (and
wrap it) in a process that does not serve. What it is not sure of, it does not report.

Servers run no checks. So one receiver looks at the first request of a process, and says in the log
if that came past ``lifeguard.wrap``.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import PathFinder
from itertools import chain
from pathlib import Path

import django
from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import request_started
from django.utils.module_loading import import_string

from .._core.observer import logger
from ._settings import default_lanes, examine, given, guard_at, package, pool_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import CodeType
    from typing import Any

    Check = Callable[[], Iterable[checks.CheckMessage]]

TAG = "lifeguard"
SHOWN = 3  # names in one message
_DJANGO: tuple[Any, ...] = django.VERSION


def _check(func: Check) -> Check:
    """Register *func*, for whole projects: none of this is about one app."""

    def run(app_configs: Any = None, **kwargs: Any) -> list[checks.CheckMessage]:
        if app_configs is None or any(app.name == "lifeguard.django" for app in app_configs):
            return list(func())
        return []

    run.__name__ = func.__name__
    checks.register(run, TAG)
    return func


def _message(kind: Any, id: str, text: str, hint: str) -> checks.CheckMessage:
    id = id if "." in id else f"lifeguard.{id}"
    page = f"docs/checks/{id.rpartition('.')[2]}.md"
    message: checks.CheckMessage = kind(text, hint=f"{hint} See {page}.".lstrip(), id=id)
    return message


def _error(id: str, text: str, hint: str = "") -> checks.CheckMessage:
    return _message(checks.Error, id, text, hint)


def _warning(id: str, text: str, hint: str) -> checks.CheckMessage:
    return _message(checks.Warning, id, text, hint)


# -- the setting ----------------------------------------------------------------------------------


@_check
def check_setting() -> Iterator[checks.CheckMessage]:
    """E001 to E005: LIFEGUARD says something that it must not say."""
    for problem in examine(settings):
        yield _error(problem.id, problem.text)


# -- which app is served, and is it wrapped -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _App:
    """An ``application`` of the project. *wrapped* is None where it cannot be told."""

    protocol: str  # ASGI or WSGI
    path: str
    declared: bool  # by a setting
    wrapped: bool | None


def _apps() -> list[_App]:
    """What the settings name, and what startproject made."""
    found: dict[str, _App] = {}
    home = package(settings)
    for protocol in ("ASGI", "WSGI"):
        path = getattr(settings, f"{protocol}_APPLICATION", None)
        if isinstance(path, str) and "." in path:
            found[path] = _App(protocol, path, True, _is_wrapped(path))
        usual = f"{home}.{protocol.lower()}.application"
        if home and usual not in found and _source(usual.rpartition(".")[0]):
            found[usual] = _App(protocol, usual, False, _is_wrapped(usual))
    return list(found.values())


def _is_wrapped(path: str) -> bool | None:
    module, _, name = path.rpartition(".")
    loaded = sys.modules.get(module)
    if loaded is not None and hasattr(getattr(loaded, name, None), "lifeguard_guard"):
        return True
    source = _source(module)
    return None if source is None else _wraps(source)


def _source(module: str) -> str | None:
    """The source of *module*, found without importing anything."""
    search: Any = None
    spec = None
    parts = module.split(".")
    for i in range(len(parts)):
        try:
            spec = PathFinder.find_spec(".".join(parts[: i + 1]), search)
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        search = spec.submodule_search_locations
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    try:
        return Path(spec.origin).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


_MAKERS = {
    "ASGIHandler",
    "ProtocolTypeRouter",
    "WSGIHandler",
    "get_asgi_application",
    "get_default_application",
    "get_wsgi_application",
}


def _wraps(source: str) -> bool | None:
    """Does this module wrap the app that it makes? None where it makes none, or has no syntax."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return None
    makes = False
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            of_ours = (node.module or "").partition(".")[0] == "lifeguard"
            if of_ours and names & {"wrap", "Middleware"}:
                return True
        elif isinstance(node, (ast.Attribute, ast.Name)):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            if name == "wrap" or ast.unparse(node) == "lifeguard.asgi.Middleware":
                return True
            makes = makes or name in _MAKERS
    return False if makes else None


def _missing_wrap(apps: list[_App]) -> list[_App]:
    """Those to wrap: what ASGI_APPLICATION names, or all where none of them is."""
    for app in apps:
        if app.protocol == "ASGI" and app.declared and app.wrapped is False:
            return [app]
    if any(app.wrapped is not False for app in apps):
        return []
    return apps


def _serves_asgi(apps: list[_App]) -> bool:
    return any(app.protocol == "ASGI" and (app.declared or app.wrapped) for app in apps)


def _serves_wsgi_only(apps: list[_App]) -> bool:
    return not _serves_asgi(apps) and any(
        app.protocol == "WSGI" and app.wrapped is True for app in apps
    )


def _may_serve_wsgi(apps: list[_App]) -> bool:
    """Both are wrapped, and no setting says which one is served."""
    declared = any(app.protocol == "ASGI" and app.declared for app in apps)
    return not declared and any(app.protocol == "WSGI" and app.wrapped for app in apps)


_WRAP_HINT = "Write application = lifeguard.wrap({maker}()) in {module}."


@_check
def check_wrap() -> Iterator[checks.CheckMessage]:
    """W001: lifeguard.django is installed, and the app is not wrapped."""
    missing = _missing_wrap(_apps())
    if not missing:
        return
    first = missing[0]
    maker = f"get_{first.protocol.lower()}_application"
    which = "" if len(missing) == 1 else " Wrap the one that your server is given."
    yield _warning(
        "W001",
        f"lifeguard.django is installed, but {' or '.join(app.path for app in missing)} is not "
        "wrapped: requests get no lanes, and what they leave behind stays.",
        _WRAP_HINT.format(maker=maker, module=first.path.rpartition(".")[0]) + which,
    )


@_check
def check_age_under_asgi() -> Iterator[checks.CheckMessage]:
    """W002: CONN_MAX_AGE under ASGI, without lanes."""
    apps = _apps()
    unwrapped = [app for app in _missing_wrap(apps) if app.protocol == "ASGI" and app.declared]
    if unwrapped:
        yield from _age_under_asgi()


def _age_under_asgi() -> Iterator[checks.CheckMessage]:
    for alias, database in _databases():
        age = database.get("CONN_MAX_AGE", 0)
        if age != 0 and not _pool(database):
            yield _warning(
                "W002",
                f"DATABASES[{alias!r}] has CONN_MAX_AGE = {age!r} under ASGI without lanes: each "
                "request has a thread of its own, so its connection is kept and never used again.",
                "Wrap the app in asgi.py (lifeguard.wrap), or set CONN_MAX_AGE to 0.",
            )


# -- pools ----------------------------------------------------------------------------------------


def _databases() -> Iterator[tuple[str, dict[str, Any]]]:
    databases = getattr(settings, "DATABASES", None)
    if isinstance(databases, dict):
        for alias, database in databases.items():
            if isinstance(database, dict):
                yield alias, database


def _pool(database: dict[str, Any]) -> Any:
    options = database.get("OPTIONS")
    return options.get("pool") if isinstance(options, dict) else None


def _is_postgres(database: dict[str, Any]) -> bool:
    """By the name of the engine: loading it would import its driver."""
    engine = str(database.get("ENGINE", ""))
    return any(part in engine for part in ("postgres", "postgis", "psql"))


@_check
def check_pool_can_work() -> Iterator[checks.CheckMessage]:
    """E006: a native pool that Django refuses at the first query."""
    for alias, database in _databases():
        if not _pool(database) or not _is_postgres(database):
            continue
        age = database.get("CONN_MAX_AGE", 0)
        where = f"DATABASES[{alias!r}]"
        if _DJANGO < (5, 1):
            yield _error(
                "E006",
                f"{where} has OPTIONS['pool'], which Django {django.get_version()} does not know: "
                "no query can run.",
                "Django 5.1 is the first that has a pool. Without it: take the option out, and "
                "give CONN_MAX_AGE.",
            )
        elif age != 0:
            yield _error(
                "E006",
                f"{where} has a native pool together with CONN_MAX_AGE = {age!r}: Django raises "
                "ImproperlyConfigured at the first query.",
                "Choose one. With lanes, CONN_MAX_AGE without a pool is the faster one.",
            )
        elif _version("psycopg") is None:
            yield _error(
                "E006",
                f"{where} has a native pool, which needs psycopg 3, and that is not installed.",
                "pip install 'psycopg[binary,pool]'",
            )


@_check
def check_pool_size() -> Iterator[checks.CheckMessage]:
    """W003: a native pool smaller than the threads that will want a connection of it."""
    apps = _apps()
    for alias, database in _databases():
        size = pool_size(database)
        if size is None or not _is_postgres(database):
            continue
        if _serves_wsgi_only(apps):
            threads, what = _server_threads()
        else:
            threads, what = _lanes(), "lanes"
        if threads > size:
            fewer = what if what != "lanes" else 'LIFEGUARD["LANES"]'
            yield _warning(
                "W003",
                f"The native pool of DATABASES[{alias!r}] has {size} connections for {threads} "
                f"{what} of a worker: the others wait in the pool, and fail with PoolTimeout.",
                f"Set OPTIONS['pool']['max_size'] to {threads}, or {fewer} to {size}.",
            )


def _lanes() -> int:
    lanes = given(settings).get("LANES")
    if lanes is None:
        return default_lanes(settings)
    return lanes if isinstance(lanes, int) else 0  # E002 says it


def _server_threads() -> tuple[int, str]:
    """The threads of a WSGI worker, where the environment says how many."""
    found = re.search(r"--threads[ =](\d+)", os.environ.get("GUNICORN_CMD_ARGS", ""))
    if found:
        return int(found[1]), "threads (GUNICORN_CMD_ARGS)"
    granian = os.environ.get("GRANIAN_BLOCKING_THREADS", "")
    if granian.isdigit():
        return int(granian), "threads (GRANIAN_BLOCKING_THREADS)"
    return 0, "threads"


# -- views and middleware -------------------------------------------------------------------------


def _views() -> Iterator[Any]:
    """The callables of the URLconf, each once. Django's own checks load it, too."""
    from django.urls import get_resolver

    if not getattr(settings, "ROOT_URLCONF", None):
        return
    seen: set[int] = set()
    resolver: Any = get_resolver()
    try:
        left = list(resolver.url_patterns)
    except Exception:  # Django's own check says what is wrong with it
        return
    while left:
        pattern = left.pop(0)
        if hasattr(pattern, "url_patterns"):
            try:
                left.extend(pattern.url_patterns)
            except Exception:
                continue
        view = getattr(pattern, "callback", None)
        if view is not None and id(view) not in seen:
            seen.add(id(view))
            yield view


def _view_name(view: Any) -> str:
    target = getattr(view, "view_class", None) or getattr(view, "cls", None) or view
    name = getattr(target, "__qualname__", None) or type(target).__qualname__
    return f"{getattr(target, '__module__', '?')}.{name}"


def _names(names: Iterable[str]) -> str:
    every = list(dict.fromkeys(names))
    text = ", ".join(every[:SHOWN])
    return text if len(every) <= SHOWN else f"{text} and {len(every) - SHOWN} more"


def _atomic_aliases(view: Any) -> list[str]:
    apart = getattr(view, "_non_atomic_requests", ())
    return [
        alias
        for alias, database in _databases()
        if database.get("ATOMIC_REQUESTS") and alias not in apart
    ]


@_check
def check_atomic_async_views() -> Iterator[checks.CheckMessage]:
    """E007: async views under ATOMIC_REQUESTS."""
    if not any(database.get("ATOMIC_REQUESTS") for _, database in _databases()):
        return
    wrong = [view for view in _views() if iscoroutinefunction(view) and _atomic_aliases(view)]
    if wrong:
        yield _error(
            "E007",
            "ATOMIC_REQUESTS is on, and async views cannot be atomic: every request to "
            f"{_names(map(_view_name, wrong))} is answered with 500.",
            "Decorate them with @transaction.non_atomic_requests, or make them sync.",
        )


@_check
def check_atomic_streams() -> Iterator[checks.CheckMessage]:
    """W004: a body that uses the database after ATOMIC_REQUESTS has committed."""
    if not any(database.get("ATOMIC_REQUESTS") for _, database in _databases()):
        return
    wrong = [
        view
        for view in _views()
        if not iscoroutinefunction(view) and _atomic_aliases(view) and _streams_queries(view)
    ]
    if wrong:
        yield _warning(
            "W004",
            f"{_names(map(_view_name, wrong))} streams from the database with ATOMIC_REQUESTS on: "
            "the body is made after the transaction was committed, each query on its own.",
            "Use `with transaction.atomic():` inside of the generator, or silence this where the "
            "body only reads.",
        )


_IN_BODY = {
    "acreate",
    "aiterator",
    "asave",
    "atomic",
    "bulk_create",
    "cursor",
    "iterator",
    "objects",
    "save",
    "select_for_update",
}


def _streams_queries(view: Any) -> bool:
    """Does the source of *view* say that its streamed body asks the database?"""
    for func in _functions(view):
        codes = list(_codes(func.__code__))
        names = set(chain.from_iterable(code.co_names for code in codes))
        if "StreamingHttpResponse" not in names:
            continue
        if names & {"iterator", "aiterator"}:
            return True
        for name in names:
            called = getattr(func, "__globals__", {}).get(name)
            code = getattr(called, "__code__", None)
            if code is not None and _is_generator(code):
                codes.extend(_codes(code))
        body = chain.from_iterable(code.co_names for code in codes if _is_generator(code))
        if _IN_BODY.intersection(body):
            return True
    return False


def _functions(view: Any) -> Iterator[Any]:
    """The functions of the project that a view is made of."""
    made = getattr(view, "view_class", None) or getattr(view, "cls", None)
    if made is None:
        while hasattr(view, "__wrapped__"):
            view = view.__wrapped__
        candidates: Iterable[Any] = [view]
    else:
        candidates = chain.from_iterable(
            vars(base).values()
            for base in made.__mro__
            if base.__module__.partition(".")[0] not in ("builtins", "django", "rest_framework")
        )
    for func in candidates:
        if hasattr(func, "__code__"):
            yield func


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for const in code.co_consts:
        if hasattr(const, "co_names"):
            yield from _codes(const)


def _is_generator(code: CodeType) -> bool:
    return bool(code.co_flags & (0x20 | 0x200))  # CO_GENERATOR, CO_ASYNC_GENERATOR


@_check
def check_middleware() -> Iterator[checks.CheckMessage]:
    """W005: sync-only middleware around async views."""
    if not _serves_asgi(_apps()):
        return
    sync_only: list[str] = []
    for path in getattr(settings, "MIDDLEWARE", ()):
        try:
            middleware = import_string(path)
        except Exception:  # Django says it, at the latest when the server starts
            return
        if not getattr(middleware, "async_capable", False):
            sync_only.append(path)
    if not sync_only:
        return
    waiting = [view for view in _views() if iscoroutinefunction(view)]
    if waiting:
        yield _warning(
            "W005",
            f"{_names(sync_only)} is sync-only middleware around async views "
            f"({_names(map(_view_name, waiting))}): each request holds a lane until it is "
            "answered, also while its view awaits something else.",
            "Use an async-capable version (async_capable = True), or give more LANES.",
        )


# -- versions -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Known:
    """A range of versions that leaks, with or without lifeguard's help."""

    package: str
    first: tuple[int, ...]
    fixed: tuple[int, ...]
    what: str
    when: str = ""  # asgi, unwrapped, wsgi or pool: reported only there


KNOWN = (
    _Known(
        "Django",
        (5, 0),
        (5, 0, 2),
        "forgets request_finished when a client leaves, and now and then without (ticket 35059)",
        "asgi",
    ),
    _Known(
        "asgiref",
        (0,),
        (3, 12),
        "stops the event loop while a cancelled request's thread ends (asgiref#535)",
        "unwrapped",
    ),
    _Known(
        "granian",
        (0,),
        (1, 5),
        "closes WSGI responses in a thread that has no connection, or never (granian#306)",
        "wsgi",
    ),
    _Known(
        "granian",
        (1, 5),
        (2, 2, 4),
        "forgets a thread's connections after each WSGI request, so that CONN_MAX_AGE only "
        "leaves them behind (granian#561)",
        "wsgi",
    ),
    _Known(
        "psycopg-pool",
        (0,),
        (3, 2, 7),
        "asks for more connections than it has closed when closing fails (psycopg#1176)",
        "pool",
    ),
)


@_check
def check_versions() -> Iterator[checks.CheckMessage]:
    """W007: versions that are known to leak."""
    apps = _apps()
    asgi = _serves_asgi(apps)
    holds = {
        "": True,
        "asgi": not _serves_wsgi_only(apps),
        "unwrapped": asgi and bool(_missing_wrap(apps)),
        "wsgi": not asgi or _may_serve_wsgi(apps),
        "pool": any(_pool(database) for _, database in _databases()),
    }
    for known in KNOWN:
        version = _version(known.package)
        if version is None or not holds[known.when] or not known.first <= version < known.fixed:
            continue
        fixed = ".".join(map(str, known.fixed))
        shown = ".".join(map(str, version))
        yield _warning(
            "W007",
            f"{known.package} {shown} {known.what}.",
            f"Update it to {fixed} or later.",
        )


def _version(package: str) -> tuple[int, ...] | None:
    try:
        text = metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else None


# -- the first request ----------------------------------------------------------------------------


def watch_first_request() -> None:
    """Say it in the log if this process serves requests past ``lifeguard.wrap``."""
    request_started.connect(_first_request, dispatch_uid="lifeguard.checks.first_request")


def _first_request(sender: Any = None, scope: Any = None, environ: Any = None, **_: Any) -> None:
    if not request_started.disconnect(dispatch_uid="lifeguard.checks.first_request"):
        return  # another thread was faster
    served = scope if scope is not None else environ
    if served is None or _is_test(sender):
        return
    try:
        guard = guard_at(given(settings).get("GUARD"))
    except ImproperlyConfigured:  # E005 says it
        return
    if guard.key in served:
        return
    protocol = "asgi" if scope is not None else "wsgi"
    hint = _WRAP_HINT.format(maker=f"get_{protocol}_application", module=f"{protocol}.py")
    setting = f"{protocol.upper()}_APPLICATION"
    if not getattr(settings, setting, None):
        hint += f" Is it there? Then name it in {setting}: runserver serves that one."
    past = "lifeguard.wrap"
    if any(key == "lifeguard" or str(key).startswith("lifeguard.") for key in served):
        past = "the guard that lifeguard.django belongs to, but another one"
        hint = "Name the guard that wraps the app: LIFEGUARD['GUARD'] = 'shop.guard.guard'."
    messages = [
        _warning(
            "W001",
            f"this process serves {protocol.upper()} requests that do not pass {past}: they get "
            "no lanes, and what they leave behind stays.",
            hint,
        )
    ]
    if scope is not None:
        messages += _age_under_asgi()
    for message in messages:
        if not message.is_silenced():
            logger("worker").warning("(%s) %s %s", message.id, message.msg, message.hint)


def _is_test(sender: Any) -> bool:
    """Django's test clients and live servers have handlers of their own."""
    mail = sys.modules.get("django.core.mail")
    return hasattr(mail, "outbox") or getattr(sender, "__module__", "").startswith("django.test")


watch_first_request()
