"""The scenarios: which app, which server, which load, and what to expect of each."""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import signal
import textwrap
import time
from typing import TYPE_CHECKING

from . import load
from .servers import APPS, Server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from .model import Tally


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """What a load plays on: one side's server, its tally, and the clock of the scenario."""

    server: Server
    uds: Path
    tally: Tally
    start: float
    seconds: float
    mark: Callable[[str], None]

    @property
    def until(self) -> float:
        return self.start + self.seconds


@dataclasses.dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    title: str
    story: str
    """What happens bare, in a sentence or two."""
    remedy: str
    """What lifeguard does about it, in a sentence."""
    sources: tuple[str, ...]
    """Public reports of this failure."""
    server: tuple[str, ...]
    """The command line behind `python -m`; `{uds}` is the socket to listen on."""
    bound: int
    """The most connections this configuration may open: the sum of max_size over the processes."""
    limit: int
    """CONNECTION LIMIT of each side's role."""
    load: Callable[[Stage], Awaitable[None]]
    scale: float = 1.0
    """How much of the usual time this one takes."""
    ready: str = ""
    """What the server's log says when it is ready, where it does not listen."""
    settles: bool = True
    """False where requests still run on purpose when the load ends: nothing is "held" then."""

    @property
    def app(self) -> Path:
        return APPS / f"{self.server_app}.py"

    @property
    def server_app(self) -> str:
        return next(arg.partition(":")[0] for arg in self.server if arg.endswith(":app"))

    @property
    def difference(self) -> str:
        """The lines that only the guarded side runs, read from the app's source."""
        source = self.app.read_text(encoding="utf-8")
        found = []
        for node in ast.parse(source).body:
            if isinstance(node, ast.If) and "GUARDED" in ast.unparse(node.test):
                lines = source.splitlines()[node.body[0].lineno - 1 : node.end_lineno]
                found.append(textwrap.dedent("\n".join(lines)))
        if not found:
            raise LookupError(f"{self.app.name} has no guarded lines")
        return "\n\n".join(found)

    @property
    def command(self) -> str:
        """The server's command line as one would type it."""
        skip = {"--app-dir", "--log-level", "--no-access-log", "--uds", "--bind", "warning", "."}
        skip |= {"unix:{uds}", "{uds}", "--no-control-socket", *_CELERY}
        return " ".join(arg for arg in self.server if arg not in skip)


async def _reloads(stage: Stage, at: tuple[float, ...]) -> None:
    for fraction in at:
        await asyncio.sleep(max(0.0, stage.start + fraction * stage.seconds - time.monotonic()))
        stage.mark("deploy")
        stage.server.signal(signal.SIGHUP)


async def _workers(stage: Stage) -> None:
    async with asyncio.TaskGroup() as users:
        users.create_task(_reloads(stage, (0.06, 0.34, 0.62)))
        for _ in range(7):
            users.create_task(load.run_reports(stage.uds, stage.tally, until=stage.until))
        for user in range(2):
            users.create_task(
                load.ask(stage.uds, stage.tally, f"user{user}", until=stage.until, pause=0.1)
            )


async def _fork(stage: Stage) -> None:
    async with asyncio.TaskGroup() as users:
        for user in range(6):
            users.create_task(
                load.ask(stage.uds, stage.tally, f"user{user}", until=stage.until, pause=0.01)
            )


async def _disconnects(stage: Stage) -> None:
    async with asyncio.TaskGroup() as users:
        for _ in range(2):
            users.create_task(
                load.leave_early(stage.uds, stage.tally, until=stage.until, pause=0.4)
            )
        for user in range(3):
            users.create_task(
                load.ask(stage.uds, stage.tally, f"user{user}", until=stage.until, pause=0.05)
            )


async def _wsgi(stage: Stage) -> None:
    async with asyncio.TaskGroup() as users:
        users.create_task(load.ask_missing(stage.uds, stage.tally, until=stage.until, pause=0.4))
        for user in range(3):
            users.create_task(
                load.ask(stage.uds, stage.tally, f"user{user}", until=stage.until, pause=0.05)
            )


async def _exports(stage: Stage, at: tuple[float, ...]) -> None:
    for fraction in at:
        await asyncio.sleep(max(0.0, stage.start + fraction * stage.seconds - time.monotonic()))
        stage.mark("break")
        await load.export_once(stage.uds, stage.tally)


async def _streams(stage: Stage) -> None:
    async with asyncio.TaskGroup() as users:
        users.create_task(_exports(stage, (0.08, 0.22, 0.36, 0.5)))
        for user in range(3):
            users.create_task(
                load.ask(stage.uds, stage.tally, f"user{user}", until=stage.until, pause=0.05)
            )


async def _tasks(stage: Stage) -> None:
    with load.Producer(stage.server.folder, "tasks.echo") as producer:
        async with asyncio.TaskGroup() as users:
            for user in range(8):  # twice as many as there are children: none is ever idle
                users.create_task(producer.ask(stage.tally, f"user{user}", until=stage.until))


_UVICORN = ("--app-dir", ".", "--uds", "{uds}", "--no-access-log", "--log-level", "warning")
_GUNICORN = ("--bind", "unix:{uds}", "--log-level", "warning", "--no-control-socket")
_CELERY = ("--loglevel=INFO", "--without-gossip", "--without-mingle", "--without-heartbeat")

SCENARIOS = (
    Scenario(
        name="workers",
        title="Deploys under load: several workers, a pool nobody closes",
        story=(
            "Three deploys while slow reports run. Each ends the workers, not their queries: "
            "PostgreSQL works on for clients that are gone, while the new workers open their own."
        ),
        remedy="A worker closes only when its requests are over, so no query outlives its worker.",
        sources=("psycopg/psycopg#1029", "IBM/mcp-context-forge#217"),
        server=(
            "uvicorn",
            "workers:app",
            "--workers",
            "2",
            "--timeout-graceful-shutdown",
            "1",
            *_UVICORN,
        ),
        bound=24,
        limit=26,
        load=_workers,
        scale=1.2,
        settles=False,
    ),
    Scenario(
        name="fork",
        title="A pool opened before the fork: somebody else's rows",
        story=(
            "--preload opens the pool once and then forks. All workers talk on the same sockets: "
            "requests get rows that belong to other requests, errors, or nothing at all."
        ),
        remedy="Each worker forgets the inherited sockets and opens the same pool anew.",
        sources=("psycopg/psycopg#651", "PlanExeOrg/PlanExe#674"),
        server=(
            "gunicorn",
            "fork:app",
            "--preload",
            "--workers",
            "3",
            "--timeout",
            "2",
            "--graceful-timeout",
            "1",
            *_GUNICORN,
        ),
        bound=12,
        limit=24,
        load=_fork,
    ),
    Scenario(
        name="disconnects",
        title="Clients that leave: the stream ends, its connection stays",
        story=(
            "A live feed borrows with getconn(). The client walks away, the stream is ended where "
            'it stands, putconn() is never reached: the connection stays "idle in transaction". '
            "Six of those and the pool is empty."
        ),
        remedy="What a request borrowed and did not return is taken back when the request ends.",
        sources=("sqlalchemy/sqlalchemy#12077", "onyx-dot-app/onyx#1238"),
        server=("uvicorn", "disconnects:app", "--timeout-graceful-shutdown", "2", *_UVICORN),
        bound=6,
        limit=24,
        load=_disconnects,
    ),
    Scenario(
        name="wsgi",
        title="Threads under WSGI: an exception between getconn() and putconn()",
        story=(
            "A view raises NotFound after getconn(). The client gets a proper 404; the connection "
            "is garbage collected, and the pool counts it as lent out for ever. After six of those "
            "PostgreSQL has none left, and the pool none to give."
        ),
        remedy="The same, for threads: what the request borrowed goes back when it ends.",
        sources=("Soju06/codex-lb#672", "bihealth/reev#360"),
        server=(
            "gunicorn",
            "wsgi:app",
            "--workers",
            "1",
            "--threads",
            "8",
            "--graceful-timeout",
            "2",
            *_GUNICORN,
        ),
        bound=6,
        limit=24,
        load=_wsgi,
    ),
    Scenario(
        name="django",
        title="Django's native pool: four streams that break, and a dead worker",
        story=(
            "An export raises in the middle of its async stream. Django sends no request_finished "
            "then; the connection is garbage collected, and the pool counts it as lent out for "
            "ever. Four of those, and every request of this worker fails until it is restarted."
        ),
        remedy="Every request is finished once, however it ended, and its connection goes back.",
        sources=("django/django#19366", "Syslifters/sysreptor#201"),
        server=("uvicorn", "streams:app", *_UVICORN),
        bound=4,
        limit=12,
        load=_streams,
    ),
    Scenario(
        name="celery",
        title="Celery: four prefork children take every connection there is",
        story=(
            "Each task asks three questions at once, in threads. Celery closes the connection of "
            "the task, not those of threads that have ended: they stay open until the garbage "
            "collector comes by. Four children are enough to meet the limit."
        ),
        remedy="A thread that ends closes what it opened, and each task is a unit.",
        sources=("dimagi/open-chat-studio#2553", "openedx/xqueue#45"),
        server=("celery", "-A", "tasks:app", "worker", "--concurrency=4", *_CELERY),
        bound=16,
        limit=48,
        load=_tasks,
        ready=" ready.",
    ),
)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
