"""A program without a server, once per scenario: bare or guarded, with the settings it is told.

It stands apart because Django can be set up once in a process. The program imports Django once and
then forks a child for every scenario, before anything is set up: a child costs a tenth of a second,
and has a fresh Django, no threads and no connection. The garbage collector is off in it, as it
practically is in a quiet process.

A line of JSON on stdin starts a child, and a line on stdout tells its exit status.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import json
import logging
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from tests.support.eventlog import EventLog, thread_mark

WITHIN = 15.0
"""Seconds for whatever a scenario waits for."""


class Context:
    """What a scenario is given: who it is, how to ask the database, how to be looked at."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.name: str = request["name"]
        self.guarded: bool = request["guarded"]
        self.age: int = request["age"]
        self.pooled: bool = request["pooled"]
        self.dsn: str = request["dsn"]
        self.log = EventLog(request["log"])
        self.gate = Path(request["gate"])
        self.kept: list[object] = []

    def settings(self, request: dict[str, Any]) -> dict[str, Any]:
        apps = ["django.contrib.contenttypes", "django.contrib.auth"]
        return {
            "INSTALLED_APPS": [*apps, "lifeguard.django"] if self.guarded else apps,
            "DATABASES": {alias: self.database(alias) for alias in request["aliases"]},
            "ROOT_URLCONF": "tests.django.threads.scenarios",
            "ALLOWED_HOSTS": ["*"],
            "SECRET_KEY": "test",
            "USE_TZ": True,
            "LIFEGUARD": {"LANES": 4, **request["lifeguard"]},
            "LOGGING_CONFIG": None,
        }

    def database(self, alias: str) -> dict[str, Any]:
        from psycopg.conninfo import conninfo_to_dict

        parts = conninfo_to_dict(self.dsn)
        options: dict[str, Any] = {"application_name": f"{self.name}{alias}"}
        if self.pooled:
            options["pool"] = {"min_size": 1, "max_size": 4, "timeout": 1}
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": parts["dbname"],
            "USER": parts.get("user", ""),
            "PASSWORD": parts.get("password", ""),
            "HOST": parts["host"],
            "PORT": parts.get("port", ""),
            "CONN_MAX_AGE": self.age,
            "OPTIONS": options,
        }

    def keep(self, *objects: object) -> None:
        """Hold on to what a program would have in a global."""
        self.kept.extend(objects)

    def show(self, **result: Any) -> None:
        """Let the test look at the database, and go on when it has."""
        self.log.write("shown", **result)
        until = time.monotonic() + WITHIN
        while not self.gate.exists():
            assert time.monotonic() < until, "nobody opened the gate"
            time.sleep(0.005)

    async def ashow(self, **result: Any) -> None:
        self.log.write("shown", **result)
        until = time.monotonic() + WITHIN
        while not self.gate.exists():
            assert time.monotonic() < until, "nobody opened the gate"
            await asyncio.sleep(0.005)

    def lost(self) -> int:
        """How many connections of the native pool are with nobody. It takes some back later."""
        from django.db import connections

        pool = connections["default"].pool
        until = time.monotonic() + (3.0 if self.guarded else 0.3)
        while True:
            stats = pool.get_stats()
            lost: int = stats.get("pool_size", 0) - stats.get("pool_available", 0)
            if lost == 0 or time.monotonic() > until:
                return lost
            time.sleep(0.01)


def query(alias: str = "default") -> int:
    """The process id of the backend that answers in this thread."""
    from django.db import connections

    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        backend: int = cursor.fetchone()[0]
    return backend


def insert(value: str, alias: str = "default") -> int:
    from django.db import connections

    with connections[alias].cursor() as cursor:
        cursor.execute(
            "INSERT INTO lifeguard_threads VALUES (%s) RETURNING pg_backend_pid()", [value]
        )
        backend: int = cursor.fetchone()[0]
    return backend


def close_pools() -> None:
    """Or Python 3.13 waits for their threads when the program ends: twenty seconds."""
    from django.db import connections

    for connection in connections.all():
        connection.close_pool()


def run_child(request: dict[str, Any]) -> None:
    gc.disable()
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    context = Context(request)
    thread_mark()
    logging.getLogger("django").setLevel(logging.CRITICAL)  # of views that fail on purpose
    try:
        import django
        from django.conf import settings

        settings.configure(**context.settings(request))
        django.setup()
        scenarios = importlib.import_module("tests.django.threads.scenarios")
        scenario = getattr(scenarios, request["scenario"])
        if inspect.iscoroutinefunction(scenario):
            asyncio.run(scenario(context))
        else:
            scenario(context)
        if context.pooled and not context.guarded:
            close_pools()
    except BaseException:
        context.log.write("failed", error=traceback.format_exc())
        raise


def main() -> None:
    # What every child needs. Nothing of lifeguard.django: the bare side must not have it.
    for module in (
        "concurrent.futures.thread",
        "django.core.asgi",
        "django.db.backends.postgresql.base",
        "django.db.models",
        "lifeguard",
        "psycopg_pool",
    ):
        importlib.import_module(module)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            run_child(json.loads(line))
            return
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    assert threading.active_count() == 1, "a child of a program with threads proves nothing"


if __name__ == "__main__":
    # Under its own name, so that the scenarios import this module and not a second copy.
    importlib.import_module("tests.django.threads.program").main()
