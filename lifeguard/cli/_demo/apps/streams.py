"""`uvicorn`: Django with its native pool of four, and an export whose stream breaks in the middle.

Bare, Django never ends a request whose async stream raised: `request_finished` is not sent, the
request's thread ends, and the garbage collector takes its connection. Nobody tells the pool. After
four of those it has none to give, for as long as the worker lives.
"""

# ruff: noqa: E402, TC003 - written as one writes an app, settings first
from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from typing import Any

from django.conf import settings
from psycopg.conninfo import conninfo_to_dict

login = dict[str, Any](conninfo_to_dict(os.environ["DSN"]))
login["pool"] = {"min_size": 1, "max_size": 4, "timeout": 1}
settings.configure(
    SECRET_KEY=os.urandom(16).hex(),
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=[],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": login.pop("dbname"),
            "OPTIONS": login,
        }
    },
)
if os.environ.get("GUARDED"):
    settings.INSTALLED_APPS += ["lifeguard.django"]

from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application
from django.db import connection
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path


@sync_to_async
def ask(sql: str, *values: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return str(cursor.fetchone()[0])


async def rows() -> AsyncIterator[str]:
    yield await ask("select 'name;amount'")
    raise ValueError("a row that cannot be written as CSV")


async def export(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(rows(), content_type="text/csv")


async def echo(request: HttpRequest, token: str) -> HttpResponse:
    answer: Any = await ask("select %s::text", token)
    return HttpResponse(answer)


def failed(request: HttpRequest) -> HttpResponse:
    kind, error, _ = sys.exc_info()
    answer: Any = f"{kind and kind.__name__}: {error}"
    return HttpResponse(answer, status=500)


handler500 = failed
urlpatterns = [path("export", export), path("echo/<token>", echo)]
app = get_asgi_application()

if os.environ.get("GUARDED"):
    import lifeguard

    app = lifeguard.wrap(app)
