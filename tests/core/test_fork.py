"""What a forked child has to know: that it is one."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import gc
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from lifeguard import Lifeguard, WrongProcessError
from lifeguard._core import ends, fork, lifetime
from lifeguard._core.lifetime import DISCARDED
from tests.core.helpers import Log, SyncDoor, define, in_fork, python


def test_a_child_runs_nothing_of_its_parent(guard: Lifeguard, log: Log) -> None:
    """Whatever a child tries, the exits of the parent run in the parent, once."""
    define(guard, log, "db")
    block = guard.worker()
    worker = block.__enter__()
    unit_block = guard.unit("job")
    unit = unit_block.__enter__()
    unit.enter(SyncDoor(log, "door"))

    def child() -> list[str]:
        del log[:]
        unit.close()
        unit_block.__exit__(None, None, None)
        worker.close()
        worker.end()
        worker.abandon()
        block.__exit__(None, None, None)
        ends.run(os.getpid())
        del unit[:]
        gc.collect()
        return [*log, str(worker.state), str(guard._worker.state)]

    assert in_fork(child) == ["inherited by a fork"] * 2
    unit_block.__exit__(None, None, None)
    block.__exit__(None, None, None)
    assert log == ["open db", "enter door", "exit door", "close db"]


def test_what_a_child_inherited_is_never_destroyed(guard: Lifeguard) -> None:
    """A destructor would talk on the parent's socket, so the child keeps a reference."""
    log: Log = []

    class Connection:
        def __del__(self) -> None:
            log.append("destroyed")

    @guard.resource
    def db() -> Iterator[Connection]:
        yield Connection()

    def child() -> list[str]:
        guard._worker = None  # type: ignore[assignment]
        gc.collect()
        return log

    with guard.worker():
        assert in_fork(child) == []


def test_an_unfinished_unit_of_the_parent_is_not_one_of_the_child(
    guard: Lifeguard, log: Log
) -> None:
    """callback() in the child raises WrongProcessError, which says to begin one of its own."""

    def child() -> list[str]:
        try:
            guard.callback(log.append, "never")
        except WrongProcessError as exc:
            log.append(str(exc))
        with guard.unit():
            guard.callback(log.append, "own unit ends")
        return log

    with guard.unit("parent's"):
        guard.callback(log.append, "parent's unit ends")
        answer = in_fork(child)
    refused = (
        'unit "parent\'s" belongs to the process that this one was forked from: '
        "begin a unit of this process with `with lifeguard.unit():`"
    )
    assert answer == [refused, "own unit ends"]
    assert log == ["parent's unit ends"]


@pytest.mark.parametrize("end", ["close", "conclude", "drop"])
def test_a_unit_of_another_thread_ends_in_the_parent_only(
    end: str, guard: Lifeguard, log: Log
) -> None:
    """It is not the current one of the thread that forks; the child runs nothing of it either."""
    with guard.worker():
        block = guard.unit()
        context = contextvars.copy_context()
        unit = context.run(block.__enter__)
        unit.callback(log.append, "unit ends")

        def child() -> list[str]:
            getattr(unit, end)(*([None] if end == "conclude" else []))
            return log

        assert in_fork(child) == []
        context.run(block.__exit__, None, None, None)
    assert log == ["unit ends"]


def test_a_child_opens_and_closes_its_own(guard: Lifeguard, log: Log) -> None:
    """The same definitions serve the child: a fresh worker, opened and closed in it."""
    define(guard, log, "db")

    def child() -> list[str]:
        del log[:]
        with guard.worker() as own:
            log.append(f"own: {own is not worker and own.pid == os.getpid()}")
        return log

    with guard.worker() as worker:
        assert in_fork(child) == ["open db", "own: True", "close db"]
        log.append("parent goes on")
    assert log == ["open db", "parent goes on", "close db"]


def test_a_grandchild_is_a_child_of_its_parent(guard: Lifeguard, log: Log) -> None:
    """Each generation forgets the one before."""
    define(guard, log, "db")

    def grandchild() -> list[str]:
        del log[:]
        guard._worker.end()
        with guard.worker():
            pass
        return log

    def child() -> list[Any]:
        del log[:]
        with guard.worker():
            below = in_fork(grandchild)
        return [below, *log]

    with guard.worker():
        assert in_fork(child) == [["open db", "close db"], "open db", "close db"]
    assert log == ["open db", "close db"]


def test_a_child_of_an_async_worker_opens_its_own(guard: Lifeguard, log: Log) -> None:
    """Forked inside a running loop: the loop is the parent's, and the child makes another."""

    @guard.resource
    async def db() -> AsyncIterator[int]:
        log.append("open")
        yield 1
        log.append("close")

    def child() -> list[str]:
        del log[:]
        asyncio._set_running_loop(None)
        guard._worker.end()

        async def work() -> None:
            async with guard.worker():
                log.append(f"work {db.get()}")

        with contextlib.closing(asyncio.new_event_loop()) as loop:
            loop.run_until_complete(work())
        return log

    async def main() -> None:
        async with guard.worker():
            log.append(in_fork(child))

    asyncio.run(main())
    assert log == ["open", ["open", "work 1", "close"], "close"]


def held(lock: Any) -> contextlib.ExitStack:
    """*lock*, held by another thread until the end of the block."""
    has_it, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            has_it.set()
            assert let_go.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert has_it.wait(10)
    stack = contextlib.ExitStack()
    stack.callback(thread.join, 10)
    stack.callback(let_go.set)
    return stack


def test_a_lock_held_at_the_fork_does_not_stop_the_child(guard: Lifeguard, log: Log) -> None:
    """The thread that held it does not exist in the child: locks are made anew there."""
    define(guard, log, "db")

    def child() -> list[str]:
        del log[:]
        with guard.worker(), guard.unit():
            guard.callback(log.append, "unit ends")
        return log

    for lock in (lifetime._gate, guard._lock):
        with guard.worker(), held(lock):
            assert in_fork(child) == ["open db", "unit ends", "close db"]


def test_a_thread_that_opens_at_the_fork_does_not_stop_the_child(
    guard: Lifeguard, log: Log
) -> None:
    """Forked in the middle of an opening: the child opens everything itself."""
    opening, go_on = threading.Event(), threading.Event()
    parent = os.getpid()

    @guard.resource
    def slow() -> Iterator[int]:
        log.append("open")
        if os.getpid() == parent:
            opening.set()
            assert go_on.wait(30)
        yield 1
        log.append("close")

    def hold() -> None:
        with guard.worker():
            log.append("work")

    def child() -> list[str]:
        del log[:]
        hold()
        return log

    thread = threading.Thread(target=hold)
    thread.start()
    assert opening.wait(10)
    assert in_fork(child) == ["open", "work", "close"]
    go_on.set()
    thread.join(10)
    assert log == ["open", "work", "close"]


def test_a_fork_in_the_middle_of_closing_closes_nothing_twice(guard: Lifeguard, log: Log) -> None:
    """The child does not go on with what the parent is closing."""
    answers: list[Any] = []

    def child() -> list[str]:
        guard._worker.end()
        guard._worker.close()
        return log

    define(guard, log, "first")

    @guard.resource
    def forks() -> Iterator[int]:
        yield 1
        answers.append(in_fork(child))

    define(guard, log, "last")
    with guard.worker():
        pass
    assert answers == [["open first", "open last", "close last"]]
    assert log == ["open first", "open last", "close last", "close first"]


def test_every_child_is_told_also_one_that_never_uses_lifeguard(guard: Lifeguard) -> None:
    """register_at_fork does it, before anything else runs in the child."""
    with guard.worker() as worker:
        assert in_fork(lambda: worker.state is DISCARDED) is True
        assert worker.state is not DISCARDED


def test_an_owner_that_is_gone_is_not_told() -> None:
    """Being told of forks keeps nobody alive."""
    told: list[int] = []

    class Owner:
        def __init__(self, number: int) -> None:
            self.number = number

        def after_fork(self) -> None:
            told.append(self.number)

    owners = [Owner(1), Owner(2)]
    for owner in owners:
        fork.watch(owner)
    del owner
    del owners[0]
    gc.collect()
    assert in_fork(lambda: told) == [2]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_close_their_own_and_nothing_else(
    method: str, tmp_path: Path
) -> None:
    """In a real program: parent and child each open and close once, whatever starts the child."""
    result = python(
        """
        import multiprocessing, os, sys
        import lifeguard

        parent = os.getpid()

        @lifeguard.resource
        def db():
            os.write(1, f"{os.environ.get('WHO')} opens\\n".encode())
            yield 1
            os.write(1, f"{os.environ.get('WHO')} closes\\n".encode())

        def job():
            os.environ["WHO"] = "child"
            with lifeguard.unit():
                db.get()

        if __name__ == "__main__":
            os.environ["WHO"] = "parent"
            context = multiprocessing.get_context(sys.argv[1])
            with lifeguard.worker():
                process = context.Process(target=job)
                process.start()
                process.join(20)
                assert process.exitcode == 0, process.exitcode
        """,
        method,
        path=tmp_path / "program.py",
    )
    assert result.stderr == ""
    assert result.stdout.split("\n") == [
        "parent opens",
        "child opens",
        "child closes",
        "parent closes",
        "",
    ]


def test_a_fork_that_python_is_not_told_of(
    guard: Lifeguard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that forks in C runs no hooks. The first worker that is opened notices, once."""

    class Owner:
        told = 0

        def after_fork(self) -> None:
            self.told += 1

    owner = Owner()
    fork.watch(owner)
    monkeypatch.setattr(os, "fork", ctypes.PyDLL(None).fork)

    def child() -> list[int]:
        before = owner.told
        guard.acquire()
        guard.acquire()
        return [before, owner.told]

    assert in_fork(child) == [0, 1]
    guard.leave(guard.acquire())
    assert owner.told == 0


def test_an_owner_that_comes_after_such_a_fork_is_not_told_of_it(
    guard: Lifeguard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the child makes before its first worker opens (a pool, a loop) is its own. It would
    forget that for the parent's, if it heard of the fork with those that were there before."""

    class Owner:
        told = 0

        def after_fork(self) -> None:
            self.told += 1

    before = Owner()
    fork.watch(before)
    monkeypatch.setattr(os, "fork", ctypes.PyDLL(None).fork)

    def child() -> list[int]:
        mine = Owner()
        fork.watch(mine)
        guard.acquire()
        return [before.told, mine.told]

    assert in_fork(child) == [1, 0]


def test_a_unit_of_the_parent_takes_nothing_in_a_child() -> None:
    """What a child registers would run nowhere, or in the wrong process: it is told so."""
    guard = Lifeguard(handle_sigterm=False)

    def child() -> str:
        try:
            guard.callback(print)
        except WrongProcessError as exc:
            return str(exc)
        return "taken"

    with guard.unit("of the parent"):
        said = in_fork(child)
        guard.callback(len, "")  # the parent's goes on
    guard._worker.end()
    assert "belongs to the process that this one was forked from" in said
