"""What ``import lifeguard`` costs a process that starts, and what it must not load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from time import perf_counter_ns

from bench._measure import Plan, Sample
from bench._report import Group

__all__ = ["forbidden", "loaded_by_import", "measure"]

# Dear to import, and of no use before there is a worker; starting a worker loads what it needs.
DEAR = ("asyncio", "inspect", "dataclasses", "concurrent.futures")
BARE, GUARDED = "python -c pass", 'python -c "import lifeguard"'


def loaded_by_import(module: str) -> tuple[set[str], set[str]]:
    """The modules a fresh interpreter has, and those it gains by importing ``module``."""
    code = (
        "import sys; before = set(sys.modules); "
        f"import {module}; after = set(sys.modules); "
        "import json; print(json.dumps([sorted(before), sorted(after - before)]))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    before, gained = json.loads(output.stdout)
    return set(before), set(gained)


def forbidden(loaded: set[str]) -> list[str]:
    """Those that are dear, or neither lifeguard's own nor of the standard library."""
    own = {"lifeguard"} | set(sys.stdlib_module_names)
    return sorted(
        name
        for name in loaded
        if name.split(".")[0] not in own
        or any(name == dear or name.startswith(f"{dear}.") for dear in DEAR)
    )


def start(code: str, environment: Mapping[str, str]) -> float:
    """Milliseconds from starting an interpreter to its end."""
    begin = perf_counter_ns()
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    return (perf_counter_ns() - begin) / 1e6


@contextmanager
def compiled() -> Iterator[Mapping[str, str]]:
    """An environment in which Python keeps its bytecode, as it does where packages are installed.

    Kept in a folder for this run, filled by the first start: what is compared is neither the
    compiler nor whether somebody ran the tests before.
    """
    with TemporaryDirectory(prefix="lifeguard-bench-") as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        yield environment


def measure(plan: Plan) -> Group:
    group = Group("import", "import: fresh interpreters, start to end", "ms")
    programs = {BARE: "pass", GUARDED: "import lifeguard"}
    samples = {name: Sample() for name in programs}
    with compiled() as environment:
        for code in programs.values():
            start(code, environment)
        for _ in range(max(15, plan.rounds // 4)):
            for name, code in programs.items():
                samples[name].values.append(start(code, environment))
    group.add(samples, bare=BARE)
    before, gained = loaded_by_import("lifeguard")
    unwanted = forbidden(gained)
    group.notes.append(
        f"{len(gained)} modules loaded beside the {len(before)} a bare interpreter has"
    )
    preloaded = sorted(name for name in DEAR if name in before)
    if preloaded:
        # A .pth file that imports something would make the import look cheaper than it is.
        group.notes.append(
            f"loaded before anything is imported, hence not counted: {', '.join(preloaded)}"
        )
    if unwanted:
        group.notes.append(f"must not be loaded: {', '.join(unwanted)}")
    group.target("import lifeguard", "added to a bare interpreter", group.added(GUARDED), 5, "ms")
    group.target(
        "modules", "third-party or dear ones loaded", len(unwanted) + len(preloaded), 0, "modules"
    )
    return group
