"""A worker of Django's tasks whose queue is in the database, and a client of it in one program.

Run as a program it puts the tasks of ``APP_JOBS`` into the queue and works them off: what is on the
command line goes to ``manage.py db_worker``.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import django
from asgiref.sync import sync_to_async
from django.conf import settings

from tests.django.databases import database
from tests.queues.apps import jobs
from tests.queues.apps.jobs import BARE, DSN, LOG, QUEUE, task

try:
    from django import tasks as django_tasks  # Django 6

    IMMEDIATE = "django.tasks.backends.immediate.ImmediateBackend"
    APPS = ["django_tasks_db"]
except ImportError:
    import django_tasks  # type: ignore[no-redef]

    IMMEDIATE = "django_tasks.backends.immediate.ImmediateBackend"
    APPS = ["django_tasks", "django_tasks_db"]

if not settings.configured:
    settings.configure(
        INSTALLED_APPS=[*APPS, *([] if BARE else ["lifeguard.django"])],
        DATABASES={
            "default": database(
                DSN,
                application_name=f"{QUEUE}django",
                OPTIONS={"options": f"-c search_path={os.environ['APP_SCHEMA']}"},
            )
        },
        TASKS={
            "default": {"BACKEND": "django_tasks_db.DatabaseBackend", "QUEUES": []},
            "immediate": {"BACKEND": IMMEDIATE, "QUEUES": []},
        },
        USE_TZ=True,
    )
    django.setup()


@django_tasks.task
@task
def select_sync(n: int) -> int:
    return jobs.select_sync(n)


@django_tasks.task
@task
async def select(n: int) -> int:
    return await jobs.select(n)


@django_tasks.task
@task
def keep_sync(how: str) -> None:
    jobs.keep_sync(how)
    if how == "hangs":
        while True:
            threading.Event().wait(0.05)


@django_tasks.task
@task
def until_told_to_stop() -> None:
    """Where no task runs, db_worker's handler raises SystemExit, wherever that may be."""
    LOG.write("waiting")
    while not LOG.count("told"):
        threading.Event().wait(0.05)


@django_tasks.task
@task
async def keep(how: str) -> None:
    await jobs.keep(how)


@django_tasks.task
@task
async def read(n: int) -> None:
    """An async task that asks through Django, too."""
    LOG.write("read", n=n, pid=await sync_to_async(query)(n))


def query(n: int) -> int:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


@django_tasks.task
@task
def inner(n: int) -> None:
    """A task that asks the database from threads of its own, as people do to be quicker."""
    barrier = threading.Barrier(3)

    def ask(i: int) -> int:
        barrier.wait(10)  # one thread each
        return query(i)

    with ThreadPoolExecutor(3) as executor:
        pids = list(executor.map(ask, range(3)))
    LOG.write("asked", n=n, pids=pids, own=query(n))


def row(connection: Any, what: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO rows VALUES (%s)", [what])


@django_tasks.task(backend="immediate")
@task
def write(how: str) -> None:
    """Called in the transaction of whoever enqueues it."""
    from django.db import connection

    jobs.unit_ended("ended write")
    row(connection, "task")
    if how == "fails":
        raise RuntimeError("this task fails")


@django_tasks.task(backend="immediate")
@task
async def ask_async() -> None:
    """The same for a coroutine: what is sensitive to threads runs in the caller's."""
    LOG.write("asked inline", pid=await sync_to_async(query)(0))


def enqueue_inline() -> None:
    """A caller with rows of its own around the call."""
    from django.db import connection, connections, transaction

    try:
        task(write)
    except TypeError as exc:
        LOG.write("refused", said=str(exc))

    with transaction.atomic():
        before = query(0)
        ask_async.enqueue()
        LOG.write("around it", pid=before)
    if BARE:  # Django offers signals for a clean-up, and this is the one of requests
        signals = sys.modules[django_tasks.task.__module__.partition(".base")[0] + ".signals"]
        signals.task_finished.connect(lambda **_: connections.close_all(), weak=False)
    for how in ("succeeds", "fails"):
        before = query(0)
        with transaction.atomic():
            row(connection, "caller")
            result = write.enqueue(how)
            LOG.write("enqueued", status=str(result.status))
        LOG.write("committed", same=query(0) == before)


def say_when_told_to_stop() -> None:
    """What db_worker logs of a signal it has yet to remember, and a second one could come before
    that."""
    from django_tasks_db.management.commands.db_worker import Worker

    shutdown = Worker.shutdown

    def said(self: Any, *args: Any) -> None:
        shutdown(self, *args)
        LOG.write("told")

    Worker.shutdown = said


def main() -> None:
    from django.core.management import call_command

    gc.disable()
    say_when_told_to_stop()
    if sys.argv[1:] == ["migrate"]:
        call_command("migrate", "django_tasks_database", verbosity=0)
        return
    if sys.argv[1:] == ["inline"]:
        enqueue_inline()
        return
    queue = QUEUE[-32:]  # a column of that length
    here = sys.modules["tests.queues.apps.django_worker"]
    for name, *args in json.loads(os.environ["APP_JOBS"]):
        getattr(here, name).using(queue_name=queue).enqueue(*args)
    call_command(
        "db_worker", f"--queue-name={queue}", "--interval=0.05", "--no-startup-delay", *sys.argv[1:]
    )


if __name__ == "__main__":
    # Tasks are found by the name of their module, which is not __main__.
    from tests.queues.apps.django_worker import main as run

    run()
