"""Runs the scenarios of one module, in a process for each setting, and prints what came of them.

Django can be set up once in a process. The program imports it once and forks a child for each
setting, before anything is set up. JSON comes on stdin, and goes to stdout.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import importlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, TextIO

from tests.django.lanes.site import Options, Site

GIVE_UP = 100.0
"""Seconds for one process with all its scenarios."""

SCENARIO_WITHIN = 40.0
"""Seconds for one of them."""

Scenario = Callable[[Site], Awaitable[Any]]


async def play(site: Site, scenarios: dict[str, Scenario], output: TextIO) -> None:
    for name, scenario in scenarios.items():
        error = answer = None
        begin = time.monotonic()
        try:
            async with asyncio.timeout(SCENARIO_WITHIN):
                answer = await scenario(site)
        except Exception:
            error = "\n".join([traceback.format_exc(), *site.said.lines[-5:]])
            await site.end_requests()
        print(f"{name}: {time.monotonic() - begin:.2f} s\n{error or ''}", file=sys.stderr)
        # One by one: of a process that gets stuck, the test has what came before.
        output.write(json.dumps({"name": name, "error": error, "answer": answer}) + "\n")
        output.flush()


def run_child(module: str, run: dict[str, Any], output: TextIO) -> None:
    gc.disable()
    faulthandler.dump_traceback_later(GIVE_UP, exit=True)
    only = run.pop("only", None)
    site = Site(Options(**run))
    scenarios: dict[str, Scenario] = importlib.import_module(f"tests.django.lanes.{module}").ALL
    chosen = {name: func for name, func in scenarios.items() if only is None or name in only}
    asyncio.run(play(site, chosen, output))


def import_once(driver: str) -> None:
    """What every child needs. *driver* is that of PostgreSQL which Django shall find."""
    for name in ("django.core.asgi", "django.db.models", "django.http", "django.test.utils"):
        importlib.import_module(name)
    importlib.import_module("lifeguard")
    psycopg = importlib.import_module("psycopg")
    if driver == "psycopg2":  # Django takes psycopg 3 where both are installed
        sys.modules["psycopg"] = None  # type: ignore[assignment]
    importlib.import_module("django.db.backends.postgresql.base")
    sys.modules["psycopg"] = psycopg
    importlib.import_module("psycopg_pool")


def main() -> None:
    order = json.load(sys.stdin)
    import_once(order["driver"])
    children: list[tuple[int, Any]] = []
    for run in order["runs"]:
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        pid = os.fork()
        if pid == 0:
            run_child(order["module"], run, output)
            return
        children.append((pid, output))
    results = []
    for pid, output in children:
        _, status = os.waitpid(pid, 0)
        output.seek(0)
        said = [json.loads(line) for line in output]
        result = {one.pop("name"): one for one in said}
        results.append(result | {"": {"error": f"it ended with {status}"}} if status else result)
    import asgiref
    import django
    from django.db.backends.postgresql.psycopg_any import is_psycopg3

    versions = {
        "django": django.get_version(),
        "asgiref": asgiref.__version__,
        "driver": "psycopg" if is_psycopg3 else "psycopg2",
    }
    json.dump({**versions, "results": results}, sys.stdout)


if __name__ == "__main__":
    # Under its own name, so that the scenarios do not get a second copy of it.
    importlib.import_module("tests.django.lanes.program").main()
