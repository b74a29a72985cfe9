"""Work that a cancellation must not cut short."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from lifeguard._core.clock import now
from lifeguard._core.shield import Keeper, Latch, finish_on, running_loop, shielded, spawn
from tests.core.helpers import Log, run

# -- shielded -------------------------------------------------------------------------------------


def test_shielded_returns_what_it_awaited(backend: str) -> None:
    """Arguments go in, the result comes out."""

    async def add(a: int, b: int) -> int:
        await anyio.lowlevel.checkpoint()
        return a + b

    async def main() -> int:
        return await shielded(add, 1, 2)

    assert run(backend, main) == 3


RAISED: list[BaseException] = [ValueError("1"), KeyboardInterrupt("2"), SystemExit(3)]


@pytest.mark.parametrize("error", RAISED, ids=lambda exc: type(exc).__name__)
def test_shielded_raises_what_was_raised(backend: str, error: BaseException) -> None:
    """The very exception, also one that would stop the loop if it left a task."""

    async def fail() -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    async def main() -> str:
        try:
            await shielded(fail)
        except BaseException as exc:
            caught.append(exc)
        return "went on"

    caught: list[BaseException] = []
    assert run(backend, main) == "went on"
    assert caught == [error]


def test_shielded_outlasts_any_number_of_cancellations(log: Log) -> None:
    """By edge: the work completes, then the cancellation is raised: late, not lost."""

    async def main() -> None:
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            inside.set()
            await go_on.wait()
            log.append("completed")

        async def caller() -> None:
            try:
                await shielded(work)
            except asyncio.CancelledError as exc:
                log.append(f"cancelled: {exc}")
                raise
            log.append("never")

        task = asyncio.ensure_future(caller())
        await inside.wait()
        for number in range(3):
            task.cancel(f"number {number}")
            await asyncio.sleep(0)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(main())
    assert log == ["completed", "cancelled: number 2"]


def test_shielded_outlasts_a_timeout(log: Log) -> None:
    """asyncio.timeout() around it still raises TimeoutError, after the work."""

    async def main() -> None:
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            inside.set()
            await go_on.wait()
            log.append("completed")

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01) as timeout:
                asyncio.get_running_loop().call_later(0.05, go_on.set)
                await shielded(work)
        assert timeout.expired()

    asyncio.run(main())
    assert log == ["completed"]


def test_shielded_outlasts_a_cancelled_scope(backend: str, log: Log) -> None:
    """By level: in a cancelled scope the work completes, and the next await is cancelled."""

    async def work() -> None:
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        log.append("completed")

    async def main() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await shielded(work)
            log.append("after")
            await anyio.lowlevel.checkpoint()
            log.append("never")
        assert scope.cancelled_caught

    run(backend, main)
    assert log == ["completed", "after"]


def test_shielded_does_not_spin_in_a_cancelled_scope(log: Log) -> None:
    """A level-cancelled wait sleeps until the work is done: the loop does not run hot meanwhile."""
    turns = 0

    async def main() -> None:
        nonlocal turns
        inside, go_on = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        async def work() -> None:
            inside.set()
            await go_on.wait()

        wait, waits = asyncio.wait, 0

        async def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal waits
            waits += 1
            return await wait(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch, anyio.CancelScope() as scope:
            patch.setattr(asyncio, "wait", counted)
            loop.call_later(0.05, go_on.set)
            scope.cancel()
            await shielded(work)
        turns = waits

    run("asyncio", main)
    assert 1 <= turns <= 3


def test_an_error_of_the_work_is_told_before_a_cancellation(log: Log) -> None:
    """If both happen, what went wrong in the work is what comes out."""

    async def main() -> None:
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            inside.set()
            await go_on.wait()
            raise ValueError("work")

        task = asyncio.ensure_future(shielded(work))
        await inside.wait()
        task.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(ValueError, match="work"):
            await task

    asyncio.run(main())


def test_shielded_work_is_not_collected_while_it_runs() -> None:
    """A loop keeps only weak references to tasks; these are held until they are done."""

    async def main() -> None:
        go_on: list[asyncio.Future[None]] = []

        async def work() -> None:
            go_on.append(asyncio.get_running_loop().create_future())
            await go_on[0]

        task = spawn(work)
        reference = weakref.ref(task)  # type: ignore[arg-type]
        del task
        await asyncio.sleep(0)
        future = weakref.ref(go_on.pop())
        gc.collect()
        assert reference() is not None
        waiting = future()
        assert waiting is not None
        waiting.set_result(None)
        del waiting
        while (task := reference()) is not None and not task.done():
            await asyncio.sleep(0)

    asyncio.run(main())


# -- Latch ----------------------------------------------------------------------------------------


def test_a_latch_lets_threads_and_tasks_through(backend: str, log: Log) -> None:
    """Set once, from any thread: every waiter of every kind goes on."""
    latch = Latch()
    assert not latch.is_set()
    assert latch.wait(0.001) is False

    def thread() -> None:
        assert latch.wait(10)
        log.append("thread")

    async def main() -> None:
        async def task() -> None:
            await latch.wait_async()
            log.append("task")

        threads = [threading.Thread(target=thread) for _ in range(3)]
        for each in threads:
            each.start()
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(task)
            while len(latch._wakers) < 3:
                await anyio.lowlevel.checkpoint()
            setter = threading.Thread(target=latch.set)
            setter.start()
        for each in [setter, *threads]:
            each.join(10)

    run(backend, main)
    assert sorted(log) == ["task"] * 3 + ["thread"] * 3
    assert latch.is_set()
    assert latch.wait(0)
    latch.set()
    run(backend, latch.wait_async)


def test_a_latch_set_between_the_look_and_the_wait_is_not_missed(backend: str) -> None:
    """Whoever comes to wait in the moment it is set does not wait for ever."""

    async def main() -> None:
        with anyio.fail_after(10):
            for _ in range(200):
                latch = Latch()
                setter = threading.Thread(target=latch.set)
                setter.start()
                await latch.wait_async()
                setter.join(10)

    run(backend, main)


def test_a_latch_wakes_who_waited_first_first() -> None:
    """The first requests that wait for a worker to open are served in the order of their coming.
    (asyncio; trio wakes in an order of its own choosing.)"""
    woken: list[int] = []

    async def wait(latch: Latch, number: int) -> None:
        await latch.wait_async()
        woken.append(number)

    async def main() -> None:
        latch = Latch()
        tasks = [asyncio.create_task(wait(latch, number)) for number in range(5)]
        while len(latch._wakers) < len(tasks):
            await asyncio.sleep(0)
        latch.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert woken == list(range(5))


def test_a_latch_wakes_the_rest_although_the_loop_of_one_waiter_is_gone() -> None:
    """A closed loop has nobody waiting on it, and must not keep others from going on."""
    latch = Latch()
    loop = asyncio.new_event_loop()
    task = loop.create_task(latch.wait_async())
    loop.run_until_complete(asyncio.sleep(0))
    task.cancel()
    loop.run_until_complete(asyncio.wait([task]))
    loop.close()
    woken: list[int] = []
    latch._wakers.insert(0, lambda: woken.append(1))
    latch.set()
    assert woken == [1]


# -- Keeper ---------------------------------------------------------------------------------------


def make_keeper(log: Log, *, fail: str = "") -> Keeper:
    async def main(keeper: Keeper) -> None:
        task = anyio.get_current_task().id
        log.append("enter")
        if fail == "enter":
            raise ValueError("enter")
        keeper.ready("value")
        try:
            await keeper.told()
        finally:
            assert anyio.get_current_task().id == task
            log.append("leave")
        if fail == "leave":
            raise ValueError("leave")

    return Keeper(main, "thing")


def test_a_keeper_enters_and_leaves_in_one_task(backend: str, log: Log) -> None:
    """open() returns the value, close() waits until it has left, whichever task calls them."""

    async def main() -> None:
        keeper = make_keeper(log)

        async def opens() -> None:
            log.append(await keeper.open())

        for step in (opens, keeper.close):
            async with anyio.create_task_group() as group:
                group.start_soon(step)
        assert keeper.is_done

    run(backend, main)
    assert log == ["enter", "value", "leave"]


def test_a_keeper_hands_its_errors_to_whoever_opens_and_closes(backend: str, log: Log) -> None:
    """What entering raised comes out of open(), what leaving raised out of close(), once."""

    async def main() -> None:
        with pytest.raises(ValueError, match="enter"):
            await make_keeper(log, fail="enter").open()
        keeper = make_keeper(log, fail="leave")
        await keeper.open()
        with pytest.raises(ValueError, match="leave"):
            await keeper.close()
        await keeper.close()

    run(backend, main)
    assert log == ["enter", "enter", "leave"]


def test_a_keeper_whose_opener_gives_up_gives_up_too(backend: str, log: Log) -> None:
    """Cancelled while it enters: the entering is undone before the cancellation goes on."""

    async def main() -> None:
        inside = anyio.Event()

        async def stuck(keeper: Keeper) -> None:
            inside.set()
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.lowlevel.checkpoint()
                log.append("undone")

        keeper = Keeper(stuck, "thing")
        async with anyio.create_task_group() as group:
            group.start_soon(keeper.open)
            await inside.wait()
            group.cancel_scope.cancel()
        log.append("opener is gone")
        assert keeper.is_done

    run(backend, main)
    assert log == ["undone", "opener is gone"]


def test_a_keeper_that_does_not_leave_in_time_is_made_to(backend: str, log: Log) -> None:
    """When the clock of the closer runs out, leaving is cancelled, and the task ends."""

    async def main() -> None:
        async def hangs(keeper: Keeper) -> None:
            keeper.ready()
            await keeper.told()
            try:
                await anyio.sleep_forever()
            finally:
                log.append("cancelled")

        keeper = Keeper(hangs, "thing")
        await keeper.open()
        began = now()
        with anyio.move_on_after(0.05) as scope:
            await keeper.close()
        assert scope.cancelled_caught
        assert now() - began < 5
        with anyio.fail_after(5):
            await keeper._done.wait_async()
        assert isinstance(keeper.error, TimeoutError)

    run(backend, main)
    assert log == ["cancelled"]


def test_a_keeper_that_somebody_cancels_asks_its_owner(log: Log) -> None:
    """asyncio.run() cancels every task at its end: the keeper stays until the owner tells it."""

    async def main() -> None:
        keeper = make_keeper(log)
        keeper.on_cancel = lambda: log.append("owner is told")
        before = asyncio.all_tasks()
        await keeper.open()
        (task,) = asyncio.all_tasks() - before
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
        log.append("still there")
        await keeper.close()

    asyncio.run(main())
    assert log == ["enter", "owner is told", "still there", "leave"]


def test_a_keeper_hears_of_the_end_of_a_trio_run(log: Log) -> None:
    """trio cancels system tasks at its end: the owner is told, and the keeper leaves in order."""
    keepers: list[Keeper] = []

    async def main() -> None:
        keeper = make_keeper(log)

        def on_cancel() -> None:
            log.append("owner is told")
            spawn(keeper.close)

        keeper.on_cancel = on_cancel
        keepers.append(keeper)
        await keeper.open()
        log.append("main ends")

    trio.run(main)
    assert log == ["enter", "main ends", "owner is told", "leave"]
    assert keepers[0].is_done


# -- finish_on ------------------------------------------------------------------------------------


def test_work_can_be_finished_on_a_loop_from_outside(log: Log) -> None:
    """On a stopped loop it is run here, on a running one by its own thread, on a closed one not."""
    loop = asyncio.new_event_loop()

    async def work() -> None:
        await asyncio.sleep(0)
        log.append(threading.current_thread().name)

    assert finish_on(loop, work, 5)
    thread = threading.Thread(target=loop.run_forever, name="loop")
    thread.start()
    assert finish_on(loop, work, 5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()
    assert not finish_on(loop, work, 5)
    assert log == [threading.main_thread().name, "loop"]


def test_work_cannot_be_waited_for_on_the_loop_that_waits(log: Log) -> None:
    """Inside the loop itself it would wait for ever: False says so at once, and nothing runs."""

    async def work() -> None:
        log.append("never")

    async def main() -> bool:
        loop = running_loop()
        assert loop is not None
        return finish_on(loop, work, 5)

    assert asyncio.run(main()) is False
    assert log == []


def test_work_that_hangs_on_another_loop_is_given_up() -> None:
    """From outside, too, there is a limit."""
    loop = asyncio.new_event_loop()
    with pytest.raises(TimeoutError):
        finish_on(loop, lambda: asyncio.sleep(60), 0.05)
    loop.close()


def test_there_is_no_asyncio_loop_on_trio() -> None:
    """running_loop() tells the two apart."""

    async def main() -> Any:
        return running_loop()

    assert run("trio", main) is None
    assert isinstance(run("asyncio", main), asyncio.AbstractEventLoop)
    assert running_loop() is None
