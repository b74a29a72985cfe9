"""procrastinate: the resources of a worker process, and a unit for every task.

``@lifeguard.task`` under ``@app.task`` makes a task a unit without any of this. What it cannot do
is open async resources for a plain ``def`` task, which procrastinate runs in a thread: by then it
is too late for the loop. So this opens them with the worker and closes them with it.
"""

from __future__ import annotations

import functools

from procrastinate import App

from ._wrap import as_resources, guard_of
from .threads import is_task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ._core.resource import Resource
    from ._wrap import Lifeguard

__all__ = ["install"]


def install(app: App, *, resources: Iterable[object] = (), guard: Lifeguard | None = None) -> None:
    """Make every task of *app* a unit, in its workers.

    Resources open once in each worker process before its first task, and close once after its
    last. *resources* are objects that open and close, besides those that ``@lifeguard.resource``
    declared. *guard* is a :class:`lifeguard.Lifeguard` of one's own.

    Example::

        app = procrastinate.App(connector=PsycopgConnector(conninfo=DSN))
        lifeguard.procrastinate.install(app)

        PROCRASTINATE_ON_APP_READY = "lifeguard.procrastinate.install"   # Django's settings
    """
    if not isinstance(app, App):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"lifeguard.procrastinate.install() takes a procrastinate.App, not {app!r}. With "
            "procrastinate.contrib.django, set PROCRASTINATE_ON_APP_READY = "
            '"lifeguard.procrastinate.install"'
        )
    guard = guard_of(guard)
    _install(app, guard, [guard.adopt(obj) for obj in as_resources(resources)])


def _install(app: App, guard: Lifeguard, opened: list[Resource[Any]]) -> None:
    run = app.run_worker_async

    @functools.wraps(run)
    async def run_worker_async(**kwargs: Any) -> None:
        app.perform_import_paths()  # type: ignore[no-untyped-call]
        for task in set(app.tasks.values()):  # some have two names
            if not is_task(task.func):
                task.func = guard.task(task.func)
        async with guard.worker(resources=opened):
            await run(**kwargs)

    app.run_worker_async = run_worker_async  # type: ignore[method-assign]
