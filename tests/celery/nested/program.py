"""A program that calls Celery tasks in its own thread, once per request on stdin.

It stands apart because Django can be set up once in a process, and because Celery's own fixup for
Django connects itself to signals of the process. So this one imports both and then forks a child
for each request, which has a fresh Django, a Celery app of its own and no connection.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

SETTINGS = "tests.celery.nested.settings"


def run_child(request: dict[str, Any]) -> dict[str, Any]:
    os.environ["NESTED_GUARDED"] = "1" if request["django"] else "0"
    os.environ["NESTED_NAME"] = request["name"]
    os.environ["DJANGO_SETTINGS_MODULE"] = SETTINGS
    # Of tasks and views that fail on purpose.
    for name in ("celery", "django", "lifeguard"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    import django

    django.setup()
    callers = importlib.import_module("tests.celery.nested.callers")
    answers: dict[str, Any] = callers.run(request)
    return answers


def main() -> None:
    for module in (
        "celery.contrib.testing.worker",
        "celery.fixups.django",
        "django.core.handlers.wsgi",
        "django.db.backends.postgresql.base",
        "django.test",
        "lifeguard",
        "psycopg_pool",
    ):
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                answer = run_child(request)
            except BaseException:
                answer = {"failed": traceback.format_exc()}
            Path(request["answer"]).write_text(json.dumps(answer))
            os._exit(0)  # with the threads of a worker, which would run for seconds
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    assert threading.active_count() == 1, "a child of a program with threads proves nothing"


if __name__ == "__main__":
    importlib.import_module("tests.celery.nested.program").main()
