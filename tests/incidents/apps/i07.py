"""An async view under WSGI: each request has an event loop of its own, and the pool has one too."""

from __future__ import annotations

import asyncio

from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
from psycopg_pool import AsyncConnectionPool

from tests.incidents.apps import DSN, GUARDED, PATIENCE
from tests.incidents.apps.django_site import configure

configure(__name__)
pool = AsyncConnectionPool(DSN, min_size=1, max_size=4, timeout=PATIENCE, open=False)


async def group_send(members):
    """As a channel layer does it that keeps its messages in PostgreSQL."""
    if GUARDED:
        async with lifeguard.worker(resources=[pool]):
            await use(members)
    else:
        if pool.closed:
            await pool.open(wait=True)
        await use(members)


async def use(members):
    all_have_one = asyncio.Barrier(members)

    async def send():
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
            await all_have_one.wait()

    await asyncio.gather(*(send() for _ in range(members)))


async def view(request, members):
    try:
        await group_send(members)
    except Exception as exc:
        return HttpResponse(type(exc).__name__, status=500)
    return HttpResponse("sent")


urlpatterns = [path("<int:members>", view)]
app = get_wsgi_application()

if GUARDED:
    import lifeguard

    app = lifeguard.wrap(app)
