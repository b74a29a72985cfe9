"""Requests to a project's apps without a server, for scripts in processes of their own."""

from __future__ import annotations

#: Defines ``wsgi(app, path)`` and ``asgi(app, path)``, which print the status and the body.
REQUESTS = """
import asyncio
import sys
from io import BytesIO

from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.test import Client
from django.test.utils import setup_test_environment
import lifeguard
import lifeguard.django.checks as check

def wsgi(app, path="/"):
    environ = {
        "REQUEST_METHOD": "GET", "PATH_INFO": path, "SERVER_NAME": "localhost",
        "SERVER_PORT": "80", "wsgi.input": BytesIO(), "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
    }
    said = []
    body = app(environ, lambda status, headers, exc_info=None: said.append(status[:3]))
    text = b"".join(body).decode()
    getattr(body, "close", lambda: None)()
    print(said[0], text)

def asgi(app, path="/"):
    async def main():
        gone = asyncio.Event()
        messages = [{"type": "http.request", "body": b"", "more_body": False}]
        said = []
        async def receive():
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}
        async def send(message):
            said.append(message)
        await app({
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET",
            "path": path, "raw_path": path.encode(), "root_path": "", "scheme": "http",
            "query_string": b"", "headers": [(b"host", b"localhost")],
            "server": ("localhost", 80),
        }, receive, send)
        body = b"".join(message.get("body", b"") for message in said[1:])
        print(said[0]["status"], body.decode())
    asyncio.run(main())
"""
