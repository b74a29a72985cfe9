"""The columns of the table: one process for each kind, bare and guarded, and all ways in it.

It stands apart because Django can be set up once in a process, because a way that loses a
connection bare must not harm the next test, and because the garbage collector is off in it, as it
practically is in a quiet program. It imports what is big once, and forks a child for each column.

A line of JSON on stdin starts a child, which writes each cell to the event log.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Coroutine
from typing import Any

from tests.support.eventlog import EventLog
from tests.threads.kinds import KINDS, POOL, TABLE, settled

BARE_JOBS = 20
TIMEOUT, BARE_TIMEOUT = 60.0, 0.2
"""Seconds to wait for a connection of a pool. Bare there are none: it is not worth the wait."""
SETTLED_WITHIN = 30.0


class Column:
    """One kind of connection, bare or guarded, in a process of its own."""

    def __init__(self, request: dict[str, Any], log: EventLog) -> None:
        import psycopg

        self.log = log
        self.guarded: bool = request["guarded"]
        self.appname: str = request["appname"]
        self.kind = KINDS[request["kind"]](request["dsn"], self.appname, self.guarded)
        self.overlays: dict[str, str] = request["overlays"]
        self.ways: list[str] = request["ways"]
        self.timeout = TIMEOUT if self.guarded else BARE_TIMEOUT
        self.watch = psycopg.connect(request["dsn"], autocommit=True)

    def run(self) -> None:
        from tests.threads import ways

        ways.silence()
        self.kind.prepare()
        for way in self.ways:
            if way in self.overlays:
                self.use(self.overlays[way])
            started = time.monotonic()
            cell = ways.Cell(self.kind, ways.threads_of(way))
            found: dict[str, Any] = {"error": None}
            try:
                self.run_cell(way, cell, found)
            except BaseException:
                found["error"] = traceback.format_exc()
            found["seconds"] = round(time.monotonic() - started, 2)
            found["outcomes"] = dict(cell.outcomes)
            found["threads"] = cell.threads
            self.log.write("cell", way=way, **found)
            cell.kept.clear()
            self.terminate_rest()
        self.log.write("complete")

    def use(self, folder: str) -> None:
        """Another version of a package, in place of the one that was imported."""
        sys.path.insert(0, folder)
        for name in [*sys.modules]:
            if name.partition(".")[0] == "apscheduler":
                del sys.modules[name]

    def run_cell(self, way: str, cell: Any, found: dict[str, Any]) -> None:
        from tests.threads import ways
        from tests.threads.jobs import MOMENTS

        if way in MOMENTS:
            self.finish_or_run(MOMENTS[way](self, cell, found))
            return
        if way in ways.SYNC:
            with cell.worker(self.timeout), ways.SYNC[way](cell) as run:
                self.finish(self.look(way, cell, run, found))
        else:
            asyncio.run(self.run_cell_in_a_loop(way, cell, found))
        # Threads and pools have ended, and the garbage collector did not come.
        if self.guarded or not self.kind.pooled:
            found["after"] = self.connections(0 if self.guarded else found["left"])

    async def run_cell_in_a_loop(self, way: str, cell: Any, found: dict[str, Any]) -> None:
        from tests.threads import ways

        if way in ways.SERVED:
            async with ways.SERVED[way](cell, self.timeout) as run:
                await self.look(way, cell, run, found)
        else:
            # The way first: the loop's executor has to be set before the worker sees to it.
            async with ways.ASYNC[way](cell) as run, cell.aworker(self.timeout):
                await self.look(way, cell, run, found)

    def finish_or_run(self, result: Coroutine[Any, Any, None] | None) -> None:
        if result is not None:
            asyncio.run(result)

    def finish(self, coroutine: Any) -> None:
        """Run a coroutine that has nothing to wait for."""
        try:
            coroutine.send(None)
        except StopIteration:
            return
        raise AssertionError("it waits")

    async def look(self, way: str, cell: Any, run: Any, found: dict[str, Any]) -> None:
        """Have the jobs run, and look while their threads are alive."""
        from tests.threads import ways

        jobs = self.kind.jobs if self.guarded else BARE_JOBS
        await self.await_if_needed(run(range(jobs)))
        for _ in range(10):  # on a busy machine a pool of four may take its time to be empty
            if self.guarded or not self.kind.pooled or self.kind.lost() == POOL:
                break
            await self.await_if_needed(run(range(cell.threads)))
        found["backends"] = len(cell.backends)
        kept = not self.guarded or (self.kept_by_age and way not in ways.THREADS_END)
        expected = len(cell.backends) if kept else 0
        if self.kind.pooled:
            found["lost"] = self.out(POOL, 0)
        else:
            found["left"] = self.connections(expected)
        if self.kept_by_age and way not in ways.THREADS_END:
            cell.aging = True
            await self.await_if_needed(run(range(cell.threads)))
            found["aged"] = self.connections(0 if self.guarded else expected)

    @property
    def kept_by_age(self) -> bool:
        return bool(getattr(self.kind, "max_age", 0))

    async def await_if_needed(self, result: Awaitable[None] | None) -> None:
        if inspect.isawaitable(result):
            await result

    def connections(self, expected: int) -> int:
        """What PostgreSQL says, once it is as expected: a backend leaves after its client."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"

        def count() -> int:
            row = self.watch.execute(query, [self.appname]).fetchone()
            assert row is not None
            return int(row[0])

        return settled(count, expected, SETTLED_WITHIN)

    def out(self, bare: int, guarded: int) -> int:
        """How many connections somebody has, once it is as expected of this side.

        A pool replaces what it lost a moment later, and opens in the background.
        """
        expected = guarded if self.guarded else bare
        if not self.kind.pooled:
            return self.connections(expected)
        return settled(self.kind.lost, expected, SETTLED_WITHIN)

    def rows(self, value: str) -> int:
        query = f"SELECT count(*) FROM {TABLE} WHERE value = %s"
        row = self.watch.execute(query.encode(), [value]).fetchone()
        assert row is not None
        return int(row[0])

    def terminate_rest(self) -> None:
        """The next cell begins with none."""
        self.watch.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name = %s",
            [self.appname],
        )


def run_child(request: dict[str, Any]) -> None:
    gc.disable()
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    log = EventLog(request["log"])
    try:
        Column(request, log).run()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    sys.stderr.flush()
    # Whatever bare cells have left is not to be waited for.
    os._exit(0)


def main() -> None:
    for module in (
        "django.db.backends.postgresql.base",
        "fastapi",
        "lifeguard",
        "psycopg_pool",
        "sqlalchemy.dialects.postgresql.psycopg",
        "sqlalchemy.orm",
        "starlette.applications",
        "tests.incidents.seeds.deploying",
        "tests.threads.ways",
        "uvicorn",
        "uvicorn.lifespan.on",
        "uvicorn.protocols.http.auto",
    ):
        importlib.import_module(module)
    assert threading.active_count() == 1, "a child of a program with threads proves nothing"
    children = []
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            run_child(json.loads(line))
        children.append(pid)
        print(pid, flush=True)
    for pid in children:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    # Under its own name, so that a child does not import a second copy.
    importlib.import_module("tests.threads.program").main()
