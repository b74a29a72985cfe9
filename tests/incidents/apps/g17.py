"""An async app and the Celery worker that runs it: sync tasks hand it their work."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading

from celery.signals import worker_init, worker_shutdown
from psycopg_pool import AsyncConnectionPool

from tests.incidents.apps import DSN, GUARDED, log
from tests.incidents.apps.celery_site import make_celery

LOCK = int(os.environ["G17_LOCK"]) + GUARDED  # a number of this side's own; the test holds it

app = make_celery(__name__)


@contextlib.asynccontextmanager
async def lifespan():
    """The app's: a migration, which takes its time, and a pool."""
    async with AsyncConnectionPool(DSN, open=False, min_size=1, max_size=2) as pool:
        async with pool.connection() as conn:
            await conn.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        log.write("up")
        yield pool
    log.write("down")


if GUARDED:
    import lifeguard
    import lifeguard.celery

    db = lifeguard.resource(lifespan)

    @app.task(name="upload")
    @lifeguard.celery.task
    async def upload() -> int:
        async with db.get().connection() as conn:
            row = await (await conn.execute("SELECT 6 * 7")).fetchone()
            return row[0]

else:

    class AppServer:
        """The lifespan in a thread with a loop, by hand."""

        pool: AsyncConnectionPool

        def __init__(self) -> None:
            self.loop = asyncio.new_event_loop()
            self.started = threading.Event()
            self.stopping = asyncio.Event()
            self.thread = threading.Thread(target=self.loop.run_until_complete, args=[self.run()])

        async def run(self) -> None:
            self.started.set()  # too early
            async with lifespan() as self.pool:
                await self.stopping.wait()

        def start(self, **_: object) -> None:
            self.thread.start()
            self.started.wait(10)

        def stop(self, **_: object) -> None:
            self.loop.call_soon_threadsafe(self.stopping.set)
            self.thread.join()

    server = AppServer()
    worker_init.connect(server.start)
    worker_shutdown.connect(server.stop)

    async def upload_async() -> int:
        async with server.pool.connection() as conn:
            row = await (await conn.execute("SELECT 6 * 7")).fetchone()
            return row[0]

    @app.task(name="upload")
    def upload() -> int:
        return asyncio.run_coroutine_threadsafe(upload_async(), server.loop).result()
