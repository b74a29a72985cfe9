"""The loop thread: async work where nobody runs a loop. In process; Celery's side is its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from lifeguard import Lifeguard, LifeguardError
from lifeguard._loop import LoopThread, begin_worker, end_worker, loop_thread
from tests.contract.pool import in_child
from tests.core.helpers import Log


@pytest.fixture
def log() -> Log:
    return []


@pytest.fixture
def guard() -> Iterator[Lifeguard]:
    guard = Lifeguard(grace=5, handle_sigterm=False)
    yield guard
    guard._worker.end()


@pytest.fixture
def home(guard: Lifeguard) -> Iterator[LoopThread]:
    home = loop_thread(guard)
    yield home
    home.end()
    assert home.loop is None


def define_db(guard: Lifeguard, log: Log) -> Any:
    @guard.resource
    async def db() -> AsyncIterator[asyncio.AbstractEventLoop]:
        log.append("open")
        yield asyncio.get_running_loop()
        log.append("close")

    return db


def test_all_work_of_a_process_runs_on_one_loop_where_the_resources_are_open(
    guard: Lifeguard, home: LoopThread, log: Log
) -> None:
    """Three calls: one loop, not of this thread; resources opened once, closed at the end."""
    db = define_db(guard, log)

    async def where() -> bool:
        guard.callback(log.append, "unit ends")
        return asyncio.get_running_loop() is db.get()

    assert [home.run(guard.task(where), (), {}) for _ in range(3)] == [True] * 3
    home.end()
    assert log == ["open", *["unit ends"] * 3, "close"]


def test_a_plain_function_finds_the_async_resources_open(
    guard: Lifeguard, home: LoopThread, log: Log
) -> None:
    """A sync unit that comes first opens the worker on the loop, if something in it is async."""
    db = define_db(guard, log)
    guard.home = home
    with guard.unit():
        assert db.get() is home.loop
    assert log == ["open"]


def test_threads_that_come_at_once_open_once(guard: Lifeguard, home: LoopThread, log: Log) -> None:
    """Eight first tasks, half of them async."""
    db = define_db(guard, log)
    guard.home = home

    async def use() -> bool:
        return db.get() is home.loop

    def use_sync() -> bool:
        return db.get() is home.loop

    barrier = threading.Barrier(8)

    def job(number: int) -> bool:
        barrier.wait(10)
        if number % 2:
            return bool(home.run(guard.task(use), (), {}))
        return guard.task(use_sync)()

    with concurrent.futures.ThreadPoolExecutor(8) as executor:
        assert list(executor.map(job, range(8))) == [True] * 8
    assert log == ["open"]


def test_context_variables_go_along(guard: Lifeguard, home: LoopThread) -> None:
    """What the caller's context has is seen; what the coroutine sets stays its own."""
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")
    user.set("ada")

    async def who() -> str:
        seen = user.get()
        user.set("changed")
        return seen

    assert home.run(guard.task(who), (), {}) == "ada"
    assert user.get() == "ada"


@pytest.mark.parametrize("error", [ValueError("1"), SystemExit(3), KeyboardInterrupt("2")])
def test_what_the_coroutine_raises_comes_out(
    error: BaseException, guard: Lifeguard, home: LoopThread
) -> None:
    """Also what would stop a loop; the next call finds it running."""

    async def fail() -> None:
        raise error

    async def work() -> int:
        return 5

    with pytest.raises(type(error)) as caught:
        home.run(guard.task(fail), (), {})
    assert caught.value is error
    assert home.run(guard.task(work), (), {}) == 5


def test_a_coroutine_that_cancels_itself_fails_like_any_other(
    guard: Lifeguard, home: LoopThread
) -> None:
    """asyncio's CancelledError is no Exception: a task queue would take it for its own end."""

    async def cancel() -> None:
        raise asyncio.CancelledError("enough")

    with pytest.raises(concurrent.futures.CancelledError, match="enough") as caught:
        home.run(guard.task(cancel), (), {})
    assert isinstance(caught.value, Exception)


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals need it"
)
def test_what_interrupts_the_wait_cancels_and_waits(
    guard: Lifeguard, home: LoopThread, log: Log
) -> None:
    """A time limit's exception comes out after the coroutine's finally, await and all."""

    class SoftLimit(Exception): ...

    def limit(*_: object) -> None:
        raise SoftLimit

    async def work() -> None:
        guard.callback(log.append, "unit ends")
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            log.append("finally")

    before = signal.signal(signal.SIGUSR1, limit)
    try:
        with pytest.raises(SoftLimit):
            home.run(guard.task(work), (), {})
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert log == ["finally", "unit ends"]


def test_a_coroutine_that_does_not_end_is_named(
    guard: Lifeguard, home: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    """After the grace the task goes on, and the log says who did not end."""
    guard.grace = 0.2
    release = threading.Event()

    class SoftLimit(Exception): ...  # not TimeoutError: asyncio passes over an OSError as it wakes

    def limit(*_: object) -> None:
        raise SoftLimit

    async def stubborn() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        while not release.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    before = signal.signal(signal.SIGUSR1, limit)
    try:
        with pytest.raises(SoftLimit):
            home.run(guard.task(stubborn), (), {})
    finally:
        signal.signal(signal.SIGUSR1, before)
        release.set()
    assert "stubborn" in caplog.text
    assert "did not end within 0.2 seconds" in caplog.text


def test_what_interrupts_before_the_coroutine_has_begun_goes_on_at_once(
    guard: Lifeguard,
    home: LoopThread,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A time limit that comes while the coroutine is handed over: there is no end to wait for,
    and none is missed in the log. The next call runs."""

    class SoftLimit(Exception): ...

    def interrupted(*_: object) -> None:
        monkeypatch.undo()
        raise SoftLimit

    async def work() -> int:
        return 5

    work = guard.task(work)
    assert home.run(work, (), {}) == 5
    guard.grace = 0.2
    monkeypatch.setattr(home.loop, "call_soon_threadsafe", interrupted)
    with pytest.raises(SoftLimit):
        home.run(work, (), {})
    assert caplog.text == ""
    assert home.run(work, (), {}) == 5


def test_what_interrupts_a_coroutine_that_is_handed_over_but_has_not_begun(
    guard: Lifeguard,
    home: LoopThread,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The loop is busy, and the time limit comes first: nothing of the coroutine runs, nobody
    waits for its end, and the log says nothing that is not so."""

    class SoftLimit(Exception): ...

    blocked, gate = threading.Event(), threading.Event()
    ran: list[int] = []

    def block() -> None:
        blocked.set()
        gate.wait(20)

    async def work() -> int:
        ran.append(1)
        return 5

    work = guard.task(work)
    assert home.run(work, (), {}) == 5
    assert home.loop is not None
    call_soon = home.loop.call_soon_threadsafe
    call_soon(block)
    blocked.wait(20)

    def interrupted(*start: Any) -> None:
        call_soon(*start)
        monkeypatch.setattr(home.loop, "call_soon_threadsafe", cancelled)
        raise SoftLimit

    def cancelled(*cancel: Any) -> None:
        monkeypatch.undo()
        call_soon(*cancel)
        gate.set()

    guard.grace = 5
    monkeypatch.setattr(home.loop, "call_soon_threadsafe", interrupted)
    with pytest.raises(SoftLimit):
        home.run(work, (), {})
    assert caplog.text == ""
    assert home._jobs == set()
    assert home.run(work, (), {}) == 5
    assert ran == [1, 1]


def test_it_refuses_to_block_a_running_loop(guard: Lifeguard, home: LoopThread) -> None:
    """Called in a coroutine (an eager task in an async view), it says what to do instead."""

    async def work() -> None: ...

    async def main() -> None:
        with pytest.raises(LifeguardError, match="would block the event loop that runs in this"):
            home.run(guard.task(work), (), {})

    asyncio.run(main())


def test_it_refuses_resources_of_another_loop(guard: Lifeguard, home: LoopThread, log: Log) -> None:
    """A server's worker has them open on its own loop, where they have to be used."""
    define_db(guard, log)

    async def work() -> None: ...

    async def main() -> None:
        async with guard.worker():
            with pytest.raises(LifeguardError, match="open on another event loop"):
                await asyncio.to_thread(home.run, guard.task(work), (), {})

    asyncio.run(main())
    assert log == ["open", "close"]


def test_the_end_cancels_what_runs_and_closes_after_it(
    guard: Lifeguard, home: LoopThread, log: Log
) -> None:
    """The process ends in the middle: the coroutine ends first, then what it used."""
    define_db(guard, log)
    running = threading.Event()

    async def work() -> None:
        try:
            running.set()
            await asyncio.Event().wait()
        finally:
            log.append("finally")

    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        future = executor.submit(home.run, guard.task(work), (), {})
        assert running.wait(10)
        home.end()
        assert isinstance(future.exception(10), concurrent.futures.CancelledError)
    assert log == ["open", "finally", "close"]


def test_the_end_leaves_the_clean_up_of_a_task_alone(
    guard: Lifeguard, home: LoopThread, log: Log
) -> None:
    """Cancelled once: what awaits in a `finally` is not cancelled again by the end of the loop.
    The worker is that of a server's loop, so nobody waits for the task's unit meanwhile."""
    running = threading.Event()

    async def work() -> None:
        try:
            running.set()
            await asyncio.Event().wait()
        finally:
            for _ in range(2000):
                await asyncio.sleep(0)
            log.append("finally")

    async def main() -> None:
        async with guard.worker():
            future = executor.submit(home.run, guard.task(work), (), {})
            assert await asyncio.to_thread(running.wait, 10)
            await asyncio.to_thread(home.end)
            assert isinstance(future.exception(10), concurrent.futures.CancelledError)

    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        asyncio.run(main())
    assert log == ["finally"]


def test_a_worker_that_has_ended_leaves_the_process_as_it_was(
    guard: Lifeguard, home: LoopThread, log: Log
) -> None:
    """A task queue's worker inside of a test: what comes after it has no loop to open on."""
    db = define_db(guard, log)
    begin_worker(guard)
    with guard.unit():
        assert db.get() is home.loop
    end_worker(guard)
    assert log == ["open", "close"]
    with pytest.raises(TypeError, match="is async: open it where there is an event loop"):
        with guard.unit():
            pass


def test_a_forked_child_starts_a_loop_of_its_own(
    guard: Lifeguard, home: LoopThread, log: Log
) -> None:
    """And the parent's goes on."""
    db = define_db(guard, log)

    async def where() -> bool:
        return asyncio.get_running_loop() is db.get()

    where = guard.task(where)
    assert home.run(where, (), {})
    mine = home.loop

    def child() -> list[bool]:
        right = home.run(where, (), {}) and home.loop is not mine
        home.end()
        return [right]

    assert in_child(child) == [True]
    assert home.run(where, (), {})
    assert home.loop is mine


def test_a_child_of_a_busy_process_starts_and_ends_its_own(
    guard: Lifeguard, home: LoopThread, log: Log
) -> None:
    """Forked while one thread of the parent waits for a task and another one is at the loop's
    lock. Neither is there in the child, which would wait for them for a minute."""
    guard.grace = 60
    running, let_go, has_lock = threading.Event(), threading.Event(), threading.Event()

    async def busy() -> None:
        running.set()
        await asyncio.to_thread(let_go.wait, 60)

    def hold_lock() -> None:
        with home._lock:
            has_lock.set()
            let_go.wait(60)

    async def work() -> int:
        return 5

    def child() -> int:
        answer: int = home.run(guard.task(work), (), {})
        home.end()
        return answer

    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        future = executor.submit(home.run, guard.task(busy), (), {})
        try:
            assert running.wait(10)
            executor.submit(hold_lock)
            assert has_lock.wait(10)
            assert in_child(child) == 5
        finally:
            let_go.set()
        assert future.result(10) is None


def test_a_block_that_leaves_closes_what_came_to_live_on_the_loop(
    guard: Lifeguard, home: LoopThread, log: Log
) -> None:
    """`with worker():` in a script, and an async task within: closed with the block."""
    db = define_db(guard, log)

    async def where() -> bool:
        return asyncio.get_running_loop() is db.get()

    guard._defined.remove(db)
    with guard.worker():
        guard._defined.append(db)

        async def more() -> None:
            await guard.aacquire([db], hold=False)

        home.run(more, (), {})
        assert home.run(guard.task(where), (), {})
    assert log == ["open", "close"]


PROGRAM = """
import asyncio, lifeguard
from lifeguard._loop import loop_thread

@lifeguard.resource
async def db():
    print("open", flush=True)
    yield 1
    print("close", flush=True)

@lifeguard.task
async def work():
    return db.get()

print(loop_thread(lifeguard._default).run(work, (), {}))
"""


def test_a_program_that_just_ends_closes(tmp_path: Any) -> None:
    """Nobody says so: the end of the process is enough, and it does not hang."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    assert (result.stdout.split(), result.stderr) == (["open", "1", "close"], "")


BUSY = """
import asyncio, contextlib, threading, lifeguard
from concurrent.futures import CancelledError
from lifeguard._loop import loop_thread

guard = lifeguard.Lifeguard(grace=2)
running = threading.Event()

@guard.resource
async def db():
    yield 1
    print("close", flush=True)

@guard.task
async def work():
    try:
        running.set()
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        print("finally", db.get(), flush=True)

def job():
    with contextlib.suppress(CancelledError):
        loop_thread(guard).run(work, (), {})

threading.Thread(target=job, daemon=True).start()
running.wait(20)
"""


def test_a_program_that_ends_in_the_middle_of_a_task_cancels_it_first() -> None:
    """The coroutine's `finally` has its resource, and nobody waits for what would not end by
    itself: no unit is given up on."""
    result = subprocess.run(
        [sys.executable, "-c", BUSY], capture_output=True, text=True, timeout=60, check=True
    )
    assert (result.stdout.split("\n")[:-1], result.stderr) == (["finally 1", "close"], "")
