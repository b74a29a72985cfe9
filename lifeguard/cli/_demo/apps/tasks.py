"""`celery worker`: Django's ORM in four prefork children, and tasks with threads of their own.

Bare, Celery closes the connection of the thread a task runs in. Those of the task's own threads are
left behind by threads that have ended, until the garbage collector comes by: four children are
enough to take every connection PostgreSQL has.
"""

# ruff: noqa: E402 - written as one writes an app, settings first
from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from django.conf import settings
from psycopg.conninfo import conninfo_to_dict

os.environ.setdefault("DJANGO_SETTINGS_MODULE", __name__)  # this is how Celery knows Django
login = dict[str, Any](conninfo_to_dict(os.environ["DSN"]))
settings.configure(
    SECRET_KEY=os.urandom(16).hex(),
    INSTALLED_APPS=[],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": login.pop("dbname"),
            "OPTIONS": login,
        }
    },
)

from celery import Celery
from django.db import connection

folder = Path(os.environ["FOLDER"])  # a broker that every machine has: files in a folder
for name in ("queue", "control", "results"):
    (folder / name).mkdir(parents=True, exist_ok=True)
app = Celery("tasks", broker="filesystem://", backend=f"file://{folder}/results")
app.conf.broker_transport_options = {
    "data_folder_in": f"{folder}/queue",
    "data_folder_out": f"{folder}/queue",
    "control_folder": f"{folder}/control",
    "polling_interval": 0.02,
}


def ask(word: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute("select %s::text from pg_sleep(0.02)", [word])
        return str(cursor.fetchone()[0])


@app.task  # type: ignore[untyped-decorator]
def echo(token: str) -> str:
    with ThreadPoolExecutor(3) as threads:  # three questions at once
        return "-".join(threads.map(ask, token.split("-")))


if os.environ.get("GUARDED"):
    import lifeguard.celery

    settings.INSTALLED_APPS += ["lifeguard.django"]
    lifeguard.celery.install(app)
