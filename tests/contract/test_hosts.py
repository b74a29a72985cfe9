"""The hosts keep the contract: ASGI, WSGI, and all that threads.py offers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import lifeguard
from tests.contract.host import HostContract, ThreadedHostContract, Work
from tests.endings.server import LifespanServer, scope
from tests.endings.test_wsgi import environ


class TestAsgi(HostContract):
    """``lifeguard.wrap`` of an ASGI app: requests on one loop, inside of its lifespan."""

    is_async = True
    kind = "http"
    runner: asyncio.Runner | None = None

    @contextlib.contextmanager
    def process(self, guard: lifeguard.Lifeguard) -> Iterator[None]:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            assert scope["type"] == self.kind
            scope["work"]()

        with asyncio.Runner() as self.runner:
            self.app = guard.wrap(app)

            async def start() -> tuple[LifespanServer, asyncio.Task[None]]:
                server = LifespanServer(self.app)
                task = asyncio.get_running_loop().create_task(server.main())
                await server.startup()
                return server, task

            async def stop() -> None:
                server.shut_down()
                await task

            server, task = self.runner.run(start())
            yield
            self.runner.run(stop())
        self.runner = None

    def call(self, guard: lifeguard.Lifeguard, work: Work) -> None:
        if self.runner is None:
            with self.process(guard):
                self.call(guard, work)
        else:
            self.runner.run(self.request(work))

    async def request(self, work: Work) -> None:
        await self.app(scope(self.kind, work=work), None, None)


class TestAsgiWebsocket(TestAsgi):
    """The same for a websocket."""

    kind = "websocket"


class WsgiHost(ThreadedHostContract):
    """A WSGI process has no end that its app could see: it is the end of the interpreter."""

    @contextlib.contextmanager
    def process(self, guard: lifeguard.Lifeguard) -> Iterator[None]:
        yield
        guard._worker.end()


class TestWsgi(WsgiHost):
    """``lifeguard.wrap`` of a WSGI app whose body is a list."""

    def call(self, guard: lifeguard.Lifeguard, work: Work) -> None:
        def app(env: Any, start_response: Any) -> Any:
            work()
            return [b"ok"]

        assert guard.wrap(app)(environ(), lambda *_: None) == [b"ok"]


class TestWsgiStream(WsgiHost):
    """``lifeguard.wrap`` of a WSGI app that is a generator: the work is done while it streams."""

    def call(self, guard: lifeguard.Lifeguard, work: Work) -> None:
        def app(env: Any, start_response: Any) -> Any:
            yield b"o"
            work()
            yield b"k"

        body = guard.wrap(app)(environ(), lambda *_: None)
        try:
            assert b"".join(body) == b"ok"
        finally:
            body.close()


class TestUnitBlock(ThreadedHostContract):
    """``with lifeguard.unit():``"""

    loud = True

    def call(self, guard: lifeguard.Lifeguard, work: Work) -> None:
        with guard.unit():
            work()


class TestAsyncUnitBlock(ThreadedHostContract):
    """``async with lifeguard.unit():``"""

    is_async = loud = True

    def call(self, guard: lifeguard.Lifeguard, work: Work) -> None:
        async def main() -> None:
            async with guard.unit():
                work()

        asyncio.run(main())


class TestTask(ThreadedHostContract):
    """``@lifeguard.task`` on a function."""

    def call(self, guard: lifeguard.Lifeguard, work: Work) -> None:
        guard.task(work)()


class TestAsyncTask(ThreadedHostContract):
    """``@lifeguard.task`` on an async function."""

    is_async = True

    def call(self, guard: lifeguard.Lifeguard, work: Work) -> None:
        @guard.task
        async def job() -> None:
            work()

        asyncio.run(job())


class TestExecutor(ThreadedHostContract):
    """``lifeguard.ThreadPoolExecutor``."""

    def call(self, guard: lifeguard.Lifeguard, work: Work) -> None:
        with lifeguard.ThreadPoolExecutor(1, guard=guard) as executor:
            executor.submit(work).result()


class TestExecutorWithContext(ThreadedHostContract):
    """The same, with the context of whoever submits."""

    def call(self, guard: lifeguard.Lifeguard, work: Work) -> None:
        with lifeguard.ThreadPoolExecutor(1, guard=guard, propagate_context=True) as executor:
            executor.submit(work).result()


class TestToThread(HostContract):
    """``asyncio.to_thread`` where a worker is open: the loop's default executor is guarded."""

    runner: asyncio.Runner | None = None

    @contextlib.contextmanager
    def process(self, guard: lifeguard.Lifeguard) -> Iterator[None]:
        with asyncio.Runner() as self.runner:
            block = guard.worker()
            self.runner.run(block.__aenter__())  # type: ignore[arg-type]
            yield
            self.runner.run(block.__aexit__(None, None, None))  # type: ignore[arg-type]
        self.runner = None

    def call(self, guard: lifeguard.Lifeguard, work: Work) -> None:
        if self.runner is None:
            with self.process(guard):
                self.call(guard, work)
        else:
            self.runner.run(self.job(work))

    async def job(self, work: Work) -> None:
        await asyncio.to_thread(work)


class TestRunInExecutor(TestToThread):
    """``loop.run_in_executor(None, ...)``, which does not bring the context along."""

    async def job(self, work: Work) -> None:
        await asyncio.get_running_loop().run_in_executor(None, work)
