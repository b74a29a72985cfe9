"""Celery tasks whose work is async, and the pool that they all use."""

from __future__ import annotations

import asyncio

from psycopg_pool import AsyncConnectionPool

from tests.incidents.apps import DSN, GUARDED, PATIENCE
from tests.incidents.apps.celery_site import make_celery

app = make_celery(__name__)
pool = AsyncConnectionPool(DSN, open=False, min_size=1, max_size=2, timeout=PATIENCE)


async def evaluate_together(queries: int) -> int:
    """So many queries at once."""
    together = asyncio.Barrier(queries)

    async def evaluate() -> int:
        async with pool.connection() as conn:
            await together.wait()
            row = await (await conn.execute("SELECT 21")).fetchone()
            return row[0]

    return sum(await asyncio.gather(*(evaluate() for _ in range(queries))))


if GUARDED:
    import lifeguard.celery

    lifeguard.celery.install(app, resources=[pool])

    @app.task(name="evaluate")
    async def task(queries: int) -> int:
        return await evaluate_together(queries)

else:

    async def main(queries: int) -> int:
        await pool.open(wait=True)  # if it is not open yet
        return await evaluate_together(queries)

    @app.task(name="evaluate")
    def task(queries: int) -> int:
        return asyncio.run(main(queries))
