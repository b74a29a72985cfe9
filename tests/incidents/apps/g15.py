"""A FastAPI app, and the tasks that it sends to a taskiq worker. Both want its pool."""

from __future__ import annotations

import asyncio
import contextlib

from fastapi import FastAPI
from psycopg_pool import AsyncConnectionPool
from taskiq.api import run_receiver_task
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

from tests.incidents.apps import DSN, GUARDED, REDIS, log

broker = ListQueueBroker(REDIS, socket_timeout=None).with_result_backend(
    RedisAsyncResultBackend(REDIS)
)


@contextlib.asynccontextmanager
async def opened():
    async with AsyncConnectionPool(DSN, open=False, min_size=1, max_size=2) as pool:
        log.write("up")
        yield pool
    log.write("down")


if GUARDED:
    import lifeguard
    import lifeguard.taskiq

    lifeguard.taskiq.install(broker)
    db = lifeguard.resource(opened)
    app = FastAPI()

    def the_pool() -> AsyncConnectionPool:
        return db.get()

else:

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        async with opened() as app.state.pool:
            yield

    app = FastAPI(lifespan=lifespan)

    def the_pool() -> AsyncConnectionPool:
        return app.state.pool


@broker.task("order")
async def order() -> int:
    async with the_pool().connection() as conn:
        row = await (await conn.execute("SELECT 6 * 7")).fetchone()
        return row[0]


async def main() -> None:
    worker = asyncio.create_task(run_receiver_task(broker, run_startup=True))
    for _ in range(2):
        result = await (await order.kiq()).wait_result(timeout=40)
        if result.is_err:
            log.write("failed", error=type(result.error).__name__)
        else:
            log.write("done", result=result.return_value)
    worker.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await worker
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
