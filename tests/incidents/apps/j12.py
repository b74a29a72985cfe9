"""A Django app with an async view that uses a pool."""

from __future__ import annotations

from contextlib import asynccontextmanager

import django
from django.conf import settings
from django.http import HttpResponse
from django.urls import path
from psycopg_pool import AsyncConnectionPool

from tests.incidents.apps import DSN, GUARDED, log


async def index(request):
    async with pool.connection() as conn:
        await conn.execute("SELECT 1")
    return HttpResponse("ok")


urlpatterns = [path("", index)]

settings.configure(ROOT_URLCONF=__name__, SECRET_KEY="test", ALLOWED_HOSTS=["*"], USE_TZ=True)
django.setup()

from django.core.asgi import get_asgi_application  # noqa: E402

pool = AsyncConnectionPool(DSN, min_size=1, max_size=2, open=False)
app = get_asgi_application()

if GUARDED:
    import lifeguard

    @lifeguard.resource
    @asynccontextmanager
    async def database():
        async with pool:
            log.write("pool opened")
            yield pool
        log.write("pool closed")

    app = lifeguard.wrap(app)
