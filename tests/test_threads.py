"""Threads and tasks: one job, one unit, ended inside the job."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import gc
import inspect
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import uvloop

import lifeguard
from lifeguard import CloseErrors, Lifeguard, NotOpenError, threads
from lifeguard._core.unit import here
from lifeguard.threads import guard_executor
from tests.core.helpers import BACKENDS, Log, adefine, define, race, run

Executor = lifeguard.ThreadPoolExecutor


@pytest.fixture
def log() -> Log:
    return []


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def guard() -> Iterator[Lifeguard]:
    guard = Lifeguard(grace=5, handle_sigterm=False)
    yield guard
    guard._worker.end()


def name() -> str:
    return threading.current_thread().name


# -- unit() and worker() in threads ---------------------------------------------------------------


def test_each_thread_has_units_of_its_own(guard: Lifeguard) -> None:
    """Many threads at once: each unit ends in its own thread, with its own callbacks, once."""
    ended: list[tuple[int, int]] = []

    def work(number: int) -> None:
        with guard.unit():
            for _ in range(20):
                guard.callback(lambda: ended.append((number, threading.get_ident())))

    define(guard, [], "db")
    with guard.worker():
        assert race([functools.partial(work, number) for number in range(16)]) == []
    assert sorted(number for number, _ in ended) == sorted(list(range(16)) * 20)
    assert len(set(ended)) == 16


def test_a_script_opens_what_it_needs_for_a_block(guard: Lifeguard, log: Log) -> None:
    """`with worker()` around threads: opened once, closed after the last unit."""
    db = define(guard, log, "db")

    def work() -> None:
        with guard.unit():
            guard.callback(log.append, "unit ends")
            assert db.get() == "db"

    with guard.worker():
        assert race([work] * 4) == []
    assert log == ["open db", *["unit ends"] * 4, "close db"]


# -- task -----------------------------------------------------------------------------------------


def test_each_call_of_a_task_is_a_unit(guard: Lifeguard, log: Log) -> None:
    """Its clean-up runs after it, and its result and its arguments stay what they were."""

    @guard.task
    def add(a: int, *, b: int) -> int:
        guard.callback(log.append, f"end of {a} + {b}")
        log.append(f"{a} + {b}")
        return a + b

    assert add(1, b=2) == 3
    assert add(3, b=4) == 7
    assert log == ["1 + 2", "end of 1 + 2", "3 + 4", "end of 3 + 4"]


def test_an_async_task_stays_async(backend: str, guard: Lifeguard, log: Log) -> None:
    """It takes both kinds of callbacks, on every loop."""

    async def later() -> None:
        await anyio.lowlevel.checkpoint()
        log.append("async callback")

    @guard.task
    async def work(what: str) -> str:
        guard.callback(log.append, "sync callback")
        guard.callback(later)
        await anyio.lowlevel.checkpoint()
        log.append(what)
        return what

    assert inspect.iscoroutinefunction(work)
    assert run(backend, functools.partial(work, "work")) == "work"
    assert log == ["work", "async callback", "sync callback"]


def test_a_task_keeps_what_identifies_the_function(guard: Lifeguard) -> None:
    """Name, docstring, signature and kind: frameworks look at them."""

    def charge(order: int, *, twice: bool = False) -> str:
        """Charge it."""
        return ""

    async def acharge(order: int) -> None: ...

    task = guard.task(charge)
    assert (task.__name__, task.__doc__, task.__module__) == ("charge", "Charge it.", __name__)
    assert inspect.signature(task) == inspect.signature(charge)
    assert not inspect.iscoroutinefunction(task)
    assert inspect.iscoroutinefunction(guard.task(acharge))


def test_methods_can_be_tasks(guard: Lifeguard, log: Log) -> None:
    """Plain, static and class methods, and inherited ones."""

    class Shop:
        @guard.task
        def charge(self, order: int) -> tuple[str, int]:
            guard.callback(log.append, "end of charge")
            return type(self).__name__, order

        @staticmethod
        @guard.task
        def static(order: int) -> int:
            guard.callback(log.append, "end of static")
            return order

        @classmethod
        @guard.task
        def make(cls, order: int) -> tuple[str, int]:
            guard.callback(log.append, "end of make")
            return cls.__name__, order

    class Branch(Shop): ...

    assert Branch().charge(1) == ("Branch", 1)
    assert Branch.static(2) == 2
    assert Branch.make(3) == ("Branch", 3)
    bound = guard.task(Branch().charge)
    assert bound(4) == ("Branch", 4)
    assert log == ["end of charge", "end of static", "end of make", "end of charge"]


RAISED: list[BaseException] = [ValueError("1"), KeyboardInterrupt("2"), SystemExit(3)]


@pytest.mark.parametrize("error", RAISED, ids=lambda exc: type(exc).__name__)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_a_task_raises_comes_out_unchanged(
    error: BaseException, kind: str, guard: Lifeguard, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """The very exception, after the clean-up; an error of the clean-up is logged."""
    error.__context__ = None

    def broken() -> None:
        log.append("broken")
        raise OSError("callback")

    @guard.task
    def work() -> None:
        guard.callback(log.append, "ran")
        guard.callback(broken)
        raise error

    @guard.task
    async def awork() -> None:
        work.__wrapped__()  # type: ignore[attr-defined]

    caught: list[BaseException] = []
    try:
        if kind == "sync":
            work()
        else:
            asyncio.run(awork())
    except BaseException as exc:
        caught.append(exc)
    assert caught == [error]
    assert error.__context__ is None
    assert log == ["broken", "ran"]
    assert "OSError: callback" in caplog.text


def test_an_error_of_a_callback_does_not_change_the_result_of_a_task(
    guard: Lifeguard, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """G7: what the task returned is returned, and the error is logged."""

    @guard.task
    def work() -> int:
        guard.callback(log.append, "ran")
        guard.callback(lambda: 1 / 0)
        return 3

    assert work() == 3
    assert log == ["ran"]
    assert "ZeroDivisionError" in caplog.text


def test_a_task_that_calls_a_task_has_two_units(guard: Lifeguard, log: Log) -> None:
    """The inner clean-up runs at the inner end, and does not touch the caller's."""

    @guard.task
    def inner() -> None:
        guard.callback(log.append, "inner ends")

    @guard.task
    def outer() -> None:
        guard.callback(log.append, "outer ends")
        inner()
        log.append("outer goes on")
        guard.callback(log.append, "outer still takes callbacks")

    outer()
    assert log == ["inner ends", "outer goes on", "outer still takes callbacks", "outer ends"]


def test_an_async_task_that_is_cancelled_twice_is_cleaned_up(guard: Lifeguard, log: Log) -> None:
    """Cancelled again in its clean-up: that completes, and the task is cancelled."""

    async def main() -> None:
        inside, cleaning, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def flush() -> None:
            cleaning.set()
            await go_on.wait()
            log.append("flushed")

        @guard.task
        async def work() -> None:
            guard.callback(flush)
            inside.set()
            await asyncio.Event().wait()

        task = asyncio.ensure_future(work())
        await inside.wait()
        task.cancel()
        await cleaning.wait()
        task.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert log == ["flushed"]


def test_an_async_task_that_is_thrown_away_is_cleaned_up(guard: Lifeguard, log: Log) -> None:
    """Its coroutine is closed and never resumed: sync clean-up runs at once."""

    class Suspend:
        def __await__(self) -> Iterator[None]:
            yield

    @guard.task
    async def work() -> None:
        guard.callback(log.append, "ran")
        await Suspend()

    with guard.worker():
        coroutine = work()
        coroutine.send(None)
        coroutine.close()
        log.append("closed")
    assert log == ["ran", "closed"]


# -- ThreadPoolExecutor ---------------------------------------------------------------------------


def test_each_job_is_a_unit_that_ends_in_its_own_thread(guard: Lifeguard) -> None:
    """Clean-up runs in the job's thread, and before its future is done."""
    done: list[bool] = []
    idents: list[tuple[int, int]] = []

    def job() -> None:
        ident = threading.get_ident()
        guard.callback(lambda: idents.append((ident, threading.get_ident())))
        guard.callback(lambda: done.append(box[0].done()))
        submitted.wait(10)

    box: list[concurrent.futures.Future[None]] = []
    submitted = threading.Event()
    with Executor(2, guard=guard) as executor:
        box.append(executor.submit(job))
        submitted.set()
        box[0].result(10)
    assert done == [False]
    ((before, at_the_end),) = idents
    assert before == at_the_end != threading.get_ident()


def test_it_is_a_drop_in(guard: Lifeguard, log: Log) -> None:
    """submit, map, initializer, names, shutdown and exceptions are as in the standard library."""
    assert issubclass(Executor, concurrent.futures.ThreadPoolExecutor)

    def job(a: int, b: int = 0) -> int:
        guard.callback(log.append, f"end of {a}")
        return a + b

    executor = Executor(
        max_workers=1,
        thread_name_prefix="pool",
        initializer=log.append,
        initargs=("initialized",),
        guard=guard,
    )
    with executor:
        assert list(executor.map(job, [1, 2], [10, 20])) == [11, 22]
        assert executor.submit(job, a=3).result(10) == 3
        assert executor.submit(name).result(10) == "pool_0"
        with pytest.raises(ZeroDivisionError):
            executor.submit(lambda: 1 // 0).result(10)
    assert log == ["initialized", "end of 1", "end of 2", "end of 3"]
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(job, 4)


def test_jobs_that_were_cancelled_in_the_queue_are_no_units(guard: Lifeguard, log: Log) -> None:
    """shutdown(cancel_futures=True) works as ever; the running job ends as a unit."""
    inside, go_on = threading.Event(), threading.Event()

    def job(number: int) -> None:
        guard.callback(log.append, f"end of {number}")
        inside.set()
        assert go_on.wait(10)

    with Executor(1, guard=guard) as executor:
        futures = [executor.submit(job, number) for number in range(3)]
        assert inside.wait(10)
        executor.shutdown(wait=False, cancel_futures=True)
        go_on.set()
    assert [future.cancelled() for future in futures] == [False, True, True]
    assert log == ["end of 0"]


def test_context_variables_are_those_of_the_thread_or_of_the_submitter(guard: Lifeguard) -> None:
    """As in the standard library by default; with propagate_context as in asyncio.to_thread."""
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")
    user.set("somebody")
    with Executor(1, guard=guard) as executor:
        assert executor.submit(user.get).result(10) == "nobody"
    with Executor(1, guard=guard, propagate_context=True) as executor:
        assert executor.submit(user.get).result(10) == "somebody"

        def change() -> None:
            user.set("changed")

        executor.submit(change).result(10)
    assert user.get() == "somebody"


def test_a_job_is_never_a_part_of_the_unit_that_submitted_it(guard: Lifeguard, log: Log) -> None:
    """Also with the submitter's context: its callbacks run at the job's end."""
    with Executor(1, guard=guard, propagate_context=True) as executor, guard.unit():
        guard.callback(log.append, "unit ends")
        executor.submit(guard.callback, log.append, "job ends").result(10)
        log.append("unit goes on")
    assert log == ["job ends", "unit goes on", "unit ends"]


def test_a_job_that_outlives_its_submitter_ends_by_itself(guard: Lifeguard, log: Log) -> None:
    """The unit that submitted it is over: the job has its own."""
    over = threading.Event()

    def job() -> None:
        assert over.wait(10)
        guard.callback(log.append, "job ends")

    with Executor(1, guard=guard, propagate_context=True) as executor:
        with guard.unit():
            guard.callback(log.append, "unit ends")
            future = executor.submit(job)
        over.set()
        future.result(10)
    assert log == ["unit ends", "job ends"]


def test_a_job_leaves_nothing_behind_in_its_thread(guard: Lifeguard) -> None:
    """Neither a current unit nor a reference to its arguments, also after an exception."""

    class Thing: ...

    def fail(thing: Thing) -> None:
        raise ValueError

    with Executor(1, guard=guard) as executor:
        for function in (lambda thing: None, fail):
            thing = Thing()
            reference = weakref.ref(thing)
            future = executor.submit(function, thing)
            concurrent.futures.wait([future], 10)
            # The executor's own reference is gone before the thread takes the next job.
            concurrent.futures.ThreadPoolExecutor.submit(executor, int).result(10)
            del thing, future
            gc.collect()
            assert reference() is None
        for left in (guard.current.get, lambda: here.job):
            assert concurrent.futures.ThreadPoolExecutor.submit(executor, left).result(10) is None


def test_a_job_that_calls_another_one_goes_on_as_itself(guard: Lifeguard, log: Log) -> None:
    """An executor that runs its jobs where they are submitted, as tests use. Code of the outer
    job that has outlived a unit is still a part of that job."""

    class Inline(concurrent.futures.Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            future: concurrent.futures.Future[Any] = concurrent.futures.Future()
            future.set_result(fn(*args, **kwargs))
            return future

    inline = Inline()
    guard_executor(inline, guard)

    def outer() -> None:
        with guard.unit():
            context = contextvars.copy_context()
        inline.submit(guard.callback, log.append, "inner ends").result()
        context.run(guard.callback, log.append, "outer ends")
        log.append("outer goes on")

    with Executor(1, guard=guard) as executor:
        executor.submit(outer).result(10)
    assert log == ["inner ends", "outer goes on", "outer ends"]


def test_the_first_job_opens_the_worker(guard: Lifeguard, log: Log) -> None:
    """Without a block around it, the end of the process closes it."""
    db = define(guard, log, "db")
    with Executor(4, guard=guard) as executor:
        assert list(executor.map(lambda _: db.get(), range(8))) == ["db"] * 8
    guard._worker.end()
    assert log == ["open db", "close db"]


def test_without_a_guard_of_ones_own_it_is_the_default_one() -> None:
    """lifeguard.callback works in its jobs."""
    ran: list[int] = []
    with Executor(1) as executor:
        executor.submit(lifeguard.callback, ran.append, 1).result(10)
    assert ran == [1]


def test_an_error_of_a_callback_does_not_change_the_result_of_a_job(
    guard: Lifeguard, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, as in a request."""

    def job() -> int:
        guard.callback(lambda: 1 / 0)
        return 3

    with Executor(1, guard=guard) as executor:
        assert executor.submit(job).result(10) == 3
    assert "ZeroDivisionError" in caplog.text


def test_an_executor_that_somebody_else_made_can_be_guarded(guard: Lifeguard, log: Log) -> None:
    """Its jobs are units from then on, and open the worker; twice guarded is once guarded."""
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        with pytest.raises(NotOpenError):
            executor.submit(guard.callback, log.append, "never").result(10)
        guard_executor(executor, guard)
        once = executor.submit
        guard_executor(executor, guard)
        assert executor.submit is once
        executor.submit(guard.callback, log.append, "job ends").result(10)
        log.append("done")
    assert log == ["job ends", "done"]
    guard._worker.close()


def test_only_an_executor_can_be_guarded(guard: Lifeguard) -> None:
    """A class, or a scheduler that has an executor, is told apart at once."""
    with pytest.raises(TypeError, match=r"guard_executor\(\) takes an executor, not <class"):
        guard_executor(concurrent.futures.ThreadPoolExecutor, guard)


def test_a_process_pool_is_told_what_to_do_instead(guard: Lifeguard) -> None:
    """Its jobs would have to carry the guard over to another process."""
    with concurrent.futures.ProcessPoolExecutor(1) as executor:
        with pytest.raises(TypeError, match=r"decorate the functions that are submitted to it"):
            guard_executor(executor, guard)
        assert executor.submit(abs, -3).result(30) == 3


def test_threads_that_come_while_the_worker_opens_wait_for_it(guard: Lifeguard) -> None:
    """Two tasks begin at once in a fresh process: both have the resource, which opened once."""
    opening, go_on = threading.Event(), threading.Event()
    opened: list[int] = []

    @guard.resource
    def slow() -> Iterator[int]:
        opened.append(1)
        opening.set()
        go_on.wait(10)
        yield 5

    task = guard.task(slow.get)
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        first = executor.submit(task)
        assert opening.wait(10)
        second = executor.submit(task)
        while second.running() is False and not second.done():
            pass
        go_on.set()
        assert (first.result(10), second.result(10)) == (5, 5)
    assert opened == [1]
    guard._worker.close()


def test_a_unit_that_the_opening_itself_begins_does_not_wait(guard: Lifeguard) -> None:
    """A resource that warms itself up in a task, here or in a thread of asyncio.to_thread."""

    @guard.resource
    async def warm() -> AsyncIterator[list[str]]:
        yield [guard.task(lambda: "here")(), await asyncio.to_thread(guard.task(lambda: "thread"))]

    async def main() -> list[str]:
        async with guard.worker():
            return warm.get()

    assert asyncio.run(asyncio.wait_for(main(), 10)) == ["here", "thread"]


# -- the default executor of the loop -------------------------------------------------------------

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@contextlib.contextmanager
def loop_of(kind: str) -> Iterator[Callable[[Any], Any]]:
    with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        yield runner.run


@pytest.mark.parametrize("kind", LOOPS)
def test_jobs_of_the_default_executor_are_units(kind: str, guard: Lifeguard, log: Log) -> None:
    """asyncio.to_thread and run_in_executor(None, ...): clean-up runs in the thread, at the end."""
    adefine(guard, log, "db")

    def job(what: str) -> str:
        guard.callback(lambda: log.append(f"end of {what}, {name() == thread}"))
        thread = name()
        log.append(what)
        return what

    async def main() -> None:
        async with guard.worker():
            assert await asyncio.to_thread(job, "to_thread") == "to_thread"
            loop = asyncio.get_running_loop()
            assert await loop.run_in_executor(None, job, "executor") == "executor"

    with loop_of(kind) as run_:
        run_(main())
    assert log == [
        "open db",
        "to_thread",
        "end of to_thread, True",
        "executor",
        "end of executor, True",
        "close db",
    ]


@pytest.mark.parametrize("kind", LOOPS)
def test_a_job_of_a_request_is_a_unit_beside_it(kind: str, guard: Lifeguard, log: Log) -> None:
    """to_thread copies the context: the job still ends by itself, before the request does."""

    async def main() -> None:
        async with guard.worker(), guard.unit():
            guard.callback(log.append, "request ends")
            await asyncio.to_thread(guard.callback, log.append, "job ends")
            log.append("request goes on")

    with loop_of(kind) as run_:
        run_(main())
    assert log == ["job ends", "request goes on", "request ends"]


@pytest.mark.parametrize("kind", LOOPS)
def test_a_default_executor_that_was_set_before_stays(
    kind: str, guard: Lifeguard, log: Log
) -> None:
    """It keeps its threads, and its jobs are units, too."""

    async def main() -> None:
        executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="mine")
        asyncio.get_running_loop().set_default_executor(executor)
        async with guard.worker():
            log.append(await asyncio.to_thread(name))
            await asyncio.to_thread(guard.callback, log.append, "job ends")

    with loop_of(kind) as run_:
        run_(main())
    assert log == ["mine_0", "job ends"]


@pytest.mark.parametrize("kind", LOOPS)
def test_a_default_executor_set_later_is_used(kind: str, guard: Lifeguard, log: Log) -> None:
    """The guard is no obstacle: whoever sets one afterwards gets it."""

    async def main() -> None:
        async with guard.worker():
            executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="mine")
            asyncio.get_running_loop().set_default_executor(executor)
            log.append(await asyncio.to_thread(name))

    with loop_of(kind) as run_:
        run_(main())
    assert log == ["mine_0"]


def test_workers_one_after_another_on_one_loop_guard_it_once(guard: Lifeguard, log: Log) -> None:
    """Jobs are units of the worker that is open, and plain jobs between workers."""

    async def main() -> None:
        for number in range(3):
            async with guard.worker():
                await asyncio.to_thread(guard.callback, log.append, f"job {number} ends")
            log.append(await asyncio.to_thread(lambda: "between"))

    asyncio.run(main())
    assert log == [
        *["job 0 ends", "between"],
        *["job 1 ends", "between"],
        *["job 2 ends", "between"],
    ]


def test_a_job_after_the_worker_has_closed_opens_nothing(guard: Lifeguard, log: Log) -> None:
    """The loop lives on, and so does its executor: asyncio.to_thread is as it was before."""
    adefine(guard, log, "db")

    async def main() -> int:
        async with guard.worker():
            assert await asyncio.to_thread(lambda: guard.current.get() is not None)
        return await asyncio.to_thread(lambda: 5 if guard.current.get() is None else 0)

    assert asyncio.run(main()) == 5
    assert log == ["open db", "close db"]


def test_guards_that_are_gone_are_forgotten(guard: Lifeguard) -> None:
    """A program that makes one guard after another (tests do) does not keep their names."""
    gone = Lifeguard()
    key = gone.key
    threads.guard_worker_threads(gone)
    assert key in threads._with_threads
    del gone
    gc.collect()
    threads.guard_worker_threads(guard)
    assert key not in threads._with_threads and guard.key in threads._with_threads


def test_errors_and_results_of_jobs_stay_as_they_are(guard: Lifeguard) -> None:
    """What the job raises is what the awaiter gets; a failing callback is only logged."""

    def fail() -> None:
        raise KeyError("job")

    async def main() -> None:
        async with guard.worker():
            with pytest.raises(KeyError, match="job"):
                await asyncio.to_thread(fail)

    asyncio.run(main())


def test_anyios_threads_are_left_alone(backend: str, guard: Lifeguard, log: Log) -> None:
    """They do not come from the default executor: a job belongs to the unit that awaits it."""

    async def main() -> None:
        async with guard.worker(), guard.unit():
            await anyio.to_thread.run_sync(guard.callback, log.append, "request ends")
            log.append("request goes on")

    run(backend, main)
    assert log == ["request goes on", "request ends"]


def test_a_closed_group_names_the_unit_of_a_block_in_a_thread(guard: Lifeguard) -> None:
    """Errors of a block's callbacks come out in the thread of the block."""

    def work() -> None:
        with guard.unit("thread job"):
            guard.callback(lambda: 1 / 0)

    (error,) = race([work])
    assert isinstance(error, CloseErrors)
    assert str(error).startswith("unit 'thread job' ended with errors")
