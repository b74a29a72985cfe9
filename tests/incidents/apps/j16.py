"""A pool opened in one ``asyncio.run`` and used in the next."""

from __future__ import annotations

import asyncio

from psycopg_pool import AsyncConnectionPool

from tests.incidents.apps import DSN, GUARDED, PATIENCE, log

pool = AsyncConnectionPool(DSN, min_size=1, max_size=2, timeout=PATIENCE, open=False)


async def create() -> None:
    await pool.open(wait=True)


async def some_func() -> None:
    try:
        async with pool.connection() as one, pool.connection() as two:
            await one.execute("SELECT 1")
            await two.execute("SELECT 1")
        log.write("ok")
    except Exception as exc:
        log.write(type(exc).__name__)


async def main() -> None:
    if not GUARDED:
        await some_func()
        return
    import lifeguard

    async with lifeguard.worker(resources=[pool]):
        await some_func()


if __name__ == "__main__":
    asyncio.run(create())
    asyncio.run(main())
