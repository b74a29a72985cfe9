"""What a response has to close is closed in a lane, although an ordinary one takes no trip there.

In a process of its own, as Django is set up once in each, and without receivers of its own at
``request_finished``: with one, every response is closed in a lane.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.support.overlay import ROOT

PROGRAM = """
import asyncio, json, sys, threading
from django.conf import settings

class Settings:
    SECRET_KEY = "test"
    ALLOWED_HOSTS = ["*"]
    ROOT_URLCONF = "__main__"
    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}

if sys.argv[1] == "guarded":
    Settings.INSTALLED_APPS = ["lifeguard.django"]
settings.configure(**{key: value for key, value in vars(Settings).items() if key.isupper()})
import django
django.setup()
from django.core.asgi import get_asgi_application
from django.db import connection
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path
import lifeguard

closed = {}

def closes(kind):
    with connection.cursor() as cursor:  # which an event loop's thread may not do
        cursor.execute("SELECT 1")
    closed[kind] = threading.current_thread() is not threading.main_thread()

class Own(HttpResponse):
    def close(self):
        closes("its own close")
        super().close()

class Rows:
    def __aiter__(self):
        return self
    async def __anext__(self):
        raise StopAsyncIteration
    def close(self):
        closes("what it streams")

async def own(request):
    return Own("own")

async def rows(request):
    return StreamingHttpResponse(Rows())

async def plain(request):
    return HttpResponse("plain")

urlpatterns = [path(view.__name__, view) for view in (own, rows, plain)]

async def ask(app, name):
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET",
        "scheme": "http", "path": f"/{name}", "raw_path": f"/{name}".encode(), "query_string": b"",
        "root_path": "", "headers": [], "client": ("127.0.0.1", 1), "server": ("localhost", 80),
    }
    messages = [{"type": "http.request", "body": b"", "more_body": False}]
    sent = []
    async def receive():
        return messages.pop() if messages else await asyncio.Event().wait()
    async def send(message):
        sent.append(message)
    await app(scope, receive, send)
    return sent[0]["status"]

async def main():
    app = get_asgi_application()
    if sys.argv[1] == "guarded":
        app = lifeguard.wrap(app)
    statuses = [await ask(app, name) for name in ("plain", "own", "rows")]
    print(json.dumps({"statuses": statuses, "closed": closed}))

asyncio.run(main())
"""


def test_what_a_response_closes_may_ask_the_database() -> None:
    """A ``close`` of a response's own, or of what it streams: in a thread where the ORM works,
    with lifeguard and without."""
    for side in ("bare", "guarded"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, side],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {
            "statuses": [200, 200, 200],
            "closed": {"its own close": True, "what it streams": True},
        }
