"""A project as ``django-admin startproject`` makes it, to change and to ask in subprocesses.

Django can be set up once per process, and its checks are about whole projects: so each project here
is real, and many settings are tried in one process of it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

INSTALLED = 'INSTALLED_APPS += ["lifeguard.django"]\n'

_ASK = """
import json, os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
import django
django.setup()
from django.core import checks
from django.test.utils import override_settings

def imported():
    return {name.partition(".")[0] for name in sys.modules}

found, before = {}, imported()
for name, changes in eval(sys.stdin.read(), {"inf": float("inf")}).items():
    with override_settings(**changes):
        found[name] = [
            {"id": m.id, "msg": m.msg, "hint": m.hint, "level": m.level}
            for m in sorted(checks.run_checks(tags=["lifeguard"]), key=lambda m: (m.id, m.msg))
        ]
loaded = sorted((imported() - before) & {"psycopg", "MySQLdb", "celery", "granian"})
made = sorted({"shop.asgi", "shop.wsgi"} & set(sys.modules))
print(json.dumps({"found": found, "loaded": loaded, "made": made}))
"""


class Project:
    """A folder with manage.py in it, and the package ``shop``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        made = self.python("-m", "django", "startproject", "shop", ".")
        assert made.returncode == 0, made.stderr

    def copy(self, folder: Path) -> Project:
        """The same again, to be changed by one test."""
        project = Project.__new__(Project)
        project.folder = folder
        shutil.copytree(self.folder, folder)
        return project

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def write(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text)

    def append(self, name: str, text: str) -> None:
        self.write(name, self.read(name) + text)

    def install(self) -> None:
        """The first of the two documented lines."""
        self.append("shop/settings.py", INSTALLED)

    def wrap(self, *protocols: str) -> None:
        """The second of them, in shop/asgi.py or shop/wsgi.py."""
        for protocol in protocols:
            name = f"shop/{protocol}.py"
            plain = f"application = get_{protocol}_application()"
            text = self.read(name)
            assert plain in text
            wrapped = f"application = lifeguard.wrap(get_{protocol}_application())"
            self.write(name, "import lifeguard\n" + text.replace(plain, wrapped))

    def set(self, **values: Any) -> None:
        lines = [f"{name} = {value!r}\n" for name, value in values.items()]
        self.append("shop/settings.py", "".join(lines))

    def python(
        self, *args: str, env: dict[str, str] | None = None, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if key not in _OURS}
        return subprocess.run(
            [sys.executable, *args],
            check=False,
            cwd=self.folder,
            env={**clean, "PYTHONPATH": f"{self.folder}:{ROOT}", **(env or {})},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=200,
        )

    def manage(
        self, *args: str, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self.python("manage.py", *args, env=env)

    def script(
        self, code: str, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run *code* where Django is set up."""
        setup = 'import os\nos.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"\n'
        return self.python("-c", f"{setup}import django\ndjango.setup()\n{code}", env=env)

    def ask(
        self, cases: dict[str, dict[str, Any]], env: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """What the checks find with each of these settings; which drivers were imported."""
        done = self.python("-c", _ASK, env=env, stdin=repr(cases))
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


_OURS = ("DJANGO_SETTINGS_MODULE", "GUNICORN_CMD_ARGS", "GRANIAN_BLOCKING_THREADS", "PGAPPNAME")


def ids(messages: list[dict[str, Any]]) -> list[str]:
    """``["W001"]``: what was found, without the name of the app."""
    return [message["id"].removeprefix("lifeguard.") for message in messages]
