"""What people write, and the types that have to come out. Read by type checkers, never run."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any, assert_type

from fastapi import FastAPI
from litestar import Litestar
from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from starlette.applications import Starlette
from starlette.middleware import Middleware

import lifeguard

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]
SyncPool = ConnectionPool[Connection[TupleRow]]


# -- wrap: the kind that goes in comes out --------------------------------------------------------


async def asgi_app(scope: Any, receive: Any, send: Any) -> None: ...


def wsgi_app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    return []


pool: Pool = AsyncConnectionPool("", open=False)
sync_pool: SyncPool = ConnectionPool("", open=False)

assert_type(lifeguard.wrap(FastAPI()), FastAPI)
assert_type(lifeguard.wrap(Starlette(), resources=[pool, sync_pool]), Starlette)
wrapped: Callable[[Any, Any, Any], Awaitable[None]] = lifeguard.wrap(asgi_app)
wsgi: Callable[[dict[str, Any], Callable[..., Any]], list[bytes]] = lifeguard.wrap(wsgi_app)

# -- resource: get() gives what was yielded -------------------------------------------------------


@lifeguard.resource
async def db() -> AsyncIterator[Pool]:
    opened: Pool = AsyncConnectionPool("", open=False)
    async with opened:
        yield opened


@lifeguard.resource
async def db_of_generator() -> AsyncGenerator[Pool, None]:
    yield pool


@lifeguard.resource
def sync_db() -> Iterator[SyncPool]:
    opened: SyncPool = ConnectionPool("", open=False)
    with opened:
        yield opened


@lifeguard.resource
def sync_db_of_generator() -> Generator[int, None, None]:
    yield 1


@lifeguard.resource
@contextlib.contextmanager
def managed() -> Generator[str]:
    yield ""


@lifeguard.resource
@contextlib.asynccontextmanager
async def amanaged() -> AsyncGenerator[bytes]:
    yield b""


assert_type(db, lifeguard.Resource[Pool])
assert_type(db.get(), Pool)
assert_type(db_of_generator.get(), Pool)
assert_type(sync_db.get(), SyncPool)
assert_type(sync_db_of_generator.get(), int)
assert_type(managed.get(), str)
assert_type(amanaged.get(), bytes)

a_resource: lifeguard.Resource[object] = sync_db  # covariant

# -- task: the signature stays --------------------------------------------------------------------


@lifeguard.task
def charge(order: int, *, twice: bool = False) -> str:
    lifeguard.callback(print, "charged", order, flush=True)
    return ""


@lifeguard.task
async def acharge(order: int) -> str:
    return ""


class Shop:
    @lifeguard.task
    def charge(self, order: int) -> str:
        return ""


assert_type(charge(1, twice=True), str)
assert_type(Shop().charge(1), str)


async def use() -> None:
    assert_type(await acharge(1), str)
    async with lifeguard.unit() as unit, lifeguard.worker() as worker:
        assert_type(unit, lifeguard.Unit)
        assert_type(worker, lifeguard.Worker)
        unit.callback(print, "end", end="")
    await lifeguard.arelease()


def use_sync() -> None:
    with lifeguard.worker(resources=[sync_pool]) as worker, lifeguard.unit("import") as unit:
        assert_type(worker, lifeguard.Worker)
        assert_type(unit.name, str)
        assert_type(unit.age, float)
    lifeguard.release()
    with lifeguard.ThreadPoolExecutor(max_workers=8, propagate_context=True) as executor:
        assert_type(executor.submit(charge, 1, twice=True).result(), str)
        assert_type(list(executor.map(charge, [1, 2])), list[str])


# -- lifespan: what frameworks take ---------------------------------------------------------------


@lifeguard.lifespan
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    yield {"pool": pool}


@lifeguard.lifespan
async def plain(app: Starlette) -> AsyncIterator[None]:
    yield


@lifeguard.lifespan(resources=[pool], mounts=True)
async def with_arguments(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    yield {}


@lifeguard.lifespan
async def of_litestar(app: Litestar) -> AsyncGenerator[None, None]:
    yield


FastAPI(lifespan=lifespan)
Starlette(lifespan=plain)
Starlette(lifespan=with_arguments, middleware=[Middleware(lifeguard.asgi.Middleware)])
FastAPI().add_middleware(lifeguard.asgi.Middleware, resources=[pool])
Litestar(lifespan=[of_litestar])

# -- guards and observers -------------------------------------------------------------------------


class Count(lifeguard.Observer):
    leaks = 0

    def worker_opened(self, worker: lifeguard.Worker) -> None: ...

    def resource_opened(self, resource: lifeguard.Resource[object], seconds: float) -> None:
        assert_type(resource.name, str)


guard = lifeguard.Lifeguard(grace=10, open_timeout=1.5, stack=0, observers=[Count()])
assert_type(guard.wrap(FastAPI()), FastAPI)

try:
    use_sync()
except lifeguard.CloseErrors as errors:
    assert_type(errors.exceptions, tuple[Exception | ExceptionGroup[Exception], ...])
