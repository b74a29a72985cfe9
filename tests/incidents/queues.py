"""Celery's client for the incidents: it sends tasks by name to the worker of one side."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from celery import Celery
from celery.result import AsyncResult

from tests.incidents.serving import Process
from tests.support.celery import close

ANSWER_WITHIN = 60.0


@contextlib.contextmanager
def client(process: Process) -> Iterator[Celery]:
    """To send tasks to *process*, whose own app this test does not import."""
    app = Celery("client", broker=process.redis, backend=process.redis, set_as_current=False)
    try:
        yield app
    finally:
        close(app)


def outcome(result: AsyncResult[Any]) -> Any:
    """What the task returned, or the name and the text of what it raised."""
    value = result.get(timeout=ANSWER_WITHIN, propagate=False, disable_sync_subtasks=False)
    return f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else value


def run(process: Process, task: str, times: int = 1) -> list[Any]:
    """What became of *times* tasks, all of them sent at once."""
    with client(process) as app:
        results = [app.send_task(task) for _ in range(times)]
        return [outcome(result) for result in results]
