"""Exits that raise, hang, or raise what is no Exception: everybody else's exit still runs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import lifeguard
from lifeguard.testing import Postgres
from tests.endings.server import BACKENDS, Log, Reports, run


class Stop(BaseException):
    """Neither an Exception nor a cancellation."""


def make_guard(log: Log, grace: float = 5) -> lifeguard.Lifeguard:
    return lifeguard.Lifeguard(handle_sigterm=False, observers=[Reports(log)], grace=grace)


def declare(guard: lifeguard.Lifeguard, log: Log, name: str, error: Any = None) -> None:
    def source() -> Iterator[str]:
        log(f"{name} opens")
        yield name
        log(f"{name} closes")
        if error is not None:
            raise error

    source.__name__ = name
    guard.resource(source)


@pytest.mark.parametrize("error", [ValueError("no"), Stop("no"), KeyboardInterrupt()], ids=repr)
def test_a_resource_that_raises_at_its_end(error: BaseException) -> None:
    """The resources opened before it close as well. What is an Exception comes out in one group,
    what is not comes out as itself."""
    log = Log()
    guard = make_guard(log)
    declare(guard, log, "first")
    declare(guard, log, "second", error)
    declare(guard, log, "third")

    with pytest.raises(BaseException) as caught:
        with guard.worker():
            pass

    assert log == [f"{name} opens" for name in ("first", "second", "third")] + [
        f"{name} closes" for name in ("third", "second", "first")
    ]
    if isinstance(error, Exception):
        assert isinstance(caught.value, lifeguard.CloseErrors)
        assert caught.value.exceptions == (error,)
    else:
        assert caught.value is error
    assert guard._worker.state.name == "closed"


def test_all_resources_raise() -> None:
    """All of them are in the group, in the order in which they were closed."""
    log = Log()
    guard = make_guard(log)
    errors = [ValueError("first"), OSError("second"), KeyError("third")]
    for error in errors:
        declare(guard, log, str(error.args[0]), error)

    with pytest.raises(lifeguard.CloseErrors) as caught:
        with guard.worker():
            pass

    assert list(caught.value.exceptions) == errors[::-1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_resource_that_hangs_at_its_end(backend: str) -> None:
    """It gets the grace and not more; it is named, and the others close."""
    import anyio

    log = Log()
    guard = make_guard(log, grace=0.5)
    declare(guard, log, "first")

    @guard.resource
    async def stuck() -> Any:
        yield
        log("stuck hangs")
        try:
            await anyio.sleep_forever()
        finally:
            log("stuck is cancelled")

    declare(guard, log, "third")

    async def main() -> float:
        began = time.monotonic()
        with pytest.raises(lifeguard.CloseErrors) as caught:
            async with guard.worker():
                pass
        (error,) = caught.value.exceptions
        assert isinstance(error, TimeoutError) and "stuck" in str(error)
        return time.monotonic() - began

    assert run(backend, main) < 2
    assert log[:4] == ["first opens", "third opens", "third closes", "stuck hangs"]
    # Given up on: what it does with its cancellation is not waited for.
    assert sorted(log[4:]) == ["first closes", "stuck is cancelled"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_resource_that_hangs_and_ignores_its_cancellation(backend: str) -> None:
    """Even one that swallows the cancellation and goes on for a while does not keep the others
    from closing after it."""
    import anyio

    log = Log()
    guard = make_guard(log, grace=0.5)
    declare(guard, log, "first")

    @guard.resource
    async def stubborn() -> Any:
        yield
        for _ in range(3):
            try:
                await anyio.sleep(0.4)
                await anyio.sleep(0.4)
            except anyio.get_cancelled_exc_class():
                log("ignored")
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.01)

    async def main() -> None:
        try:
            async with guard.worker():
                pass
        except lifeguard.CloseErrors:
            log("said")

    run(backend, main)
    assert log[0] == "first opens" and log.count("first closes") == 1
    assert "ignored" in log and log.count("said") == 1
    assert log.index("first closes") < log.index("said")


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_callbacks_that_hang(backend: str) -> None:
    """Ten callbacks of a unit that all hang: together they cost about two graces, not ten."""
    import anyio

    log = Log()
    guard = make_guard(log, grace=0.5)

    async def hang(number: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            log(f"cancelled {number}")

    async def main() -> float:
        async with guard.worker():
            began = time.monotonic()
            with pytest.raises(lifeguard.CloseErrors) as caught:
                async with guard.unit():
                    for number in range(10):
                        guard.callback(hang, number)
            assert len(caught.value.exceptions) == 10
            return time.monotonic() - began

    assert run(backend, main) < 4
    assert log == [f"cancelled {number}" for number in range(9, -1, -1)]


def test_a_thread_that_never_ends_its_unit(caplog: pytest.LogCaptureFixture) -> None:
    """A sync worker closes after the grace although a thread is still in a unit; the log names the
    unit; the thread ends its unit later, and its callbacks still run once."""
    log = Log()
    guard = make_guard(log, grace=0.5)
    declare(guard, log, "db")
    inside, over = threading.Event(), threading.Event()

    def work() -> None:
        with guard.unit("stuck job"):
            guard.callback(log, "callback")
            inside.set()
            over.wait(20)

    thread = threading.Thread(target=work)
    with guard.worker():
        thread.start()
        inside.wait(10)
    log("worker is closed")
    over.set()
    thread.join()

    assert log == ["db opens", "db closes", "worker is closed", "callback"]
    assert "stuck job" in caplog.text


def test_an_observer_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """An observer that fails at every event changes nothing, and is named in the log."""

    class Bad(lifeguard.Observer):
        def __getattribute__(self, name: str) -> Any:
            if name.startswith("_"):
                return super().__getattribute__(name)

            def fail(*args: Any) -> None:
                raise RuntimeError(f"no {name}")

            return fail

        def __repr__(self) -> str:
            return "<the bad observer>"

    log = Log()
    guard = lifeguard.Lifeguard(handle_sigterm=False, observers=[Bad(), Reports(log)])
    declare(guard, log, "db")

    with guard.worker():
        with pytest.raises(lifeguard.CloseErrors):
            with guard.unit():
                guard.callback(lambda: 1 / 0)

    assert log == ["db opens", "db closes"]
    assert "<the bad observer>" in caplog.text


def test_a_context_manager_that_fails_to_enter_is_not_left() -> None:
    """Enter first, register after: what was not entered has no exit."""
    log = Log()
    guard = make_guard(log)

    class Door:
        def __init__(self, fails: bool) -> None:
            self.fails = fails

        def __enter__(self) -> None:
            log("enter")
            if self.fails:
                raise ValueError("locked")

        def __exit__(self, *exc: object) -> None:
            log("exit")

    with guard.worker(), guard.unit() as unit:
        unit.enter(Door(fails=False))
        with pytest.raises(ValueError, match="locked"):
            unit.enter(Door(fails=True))

    assert log == ["enter", "enter", "exit"]


def test_pool_connections_that_are_killed_by_the_server(
    pg: Postgres, dsn: str, appname: str
) -> None:
    """The server ends all backends while the worker has a pool open: closing is quick and clean,
    and before that, the pool makes new ones."""
    from psycopg_pool import ConnectionPool

    guard = make_guard(Log())
    pool = ConnectionPool(dsn, open=False, min_size=2, max_size=2, timeout=10)

    def kill() -> None:
        with pg.connect() as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE starts_with(application_name, %s)",
                [appname],
            )
        assert pg.wait_count(0, prefix=appname) == 0

    with guard.worker(resources=[pool]):
        kill()
        answers: list[Any] = []
        for _ in range(20):
            try:
                with guard.unit(), pool.connection() as conn:
                    answers.append(conn.execute("SELECT 1").fetchone())
            except Exception as exc:
                answers.append(type(exc).__name__)
        assert answers[-1] == (1,) and answers.count((1,)) >= 17
        began = time.monotonic()
        kill()
    assert time.monotonic() - began < 10
    assert pg.wait_count(0, prefix=appname) == 0


def test_close_is_quick_with_everything_idle(pg: Postgres, dsn: str, appname: str) -> None:
    """Nothing waits for a grace where there is nothing to wait for."""
    from psycopg_pool import AsyncConnectionPool

    async def main() -> float:
        guard = make_guard(Log(), grace=20)
        pool = AsyncConnectionPool(dsn, open=False, min_size=4)
        async with guard.worker(resources=[pool]):
            for _ in range(10):
                async with guard.unit(), pool.connection() as conn:
                    await conn.execute("SELECT 1")
            began = time.monotonic()
        return time.monotonic() - began

    assert asyncio.run(main()) < 2
    assert pg.wait_count(0, prefix=appname) == 0
