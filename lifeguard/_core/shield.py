"""Work that a cancellation must not cut short, on asyncio and on trio.

asyncio cancels by edge: ``task.cancel()`` again, and a clean-up is hit in its middle. anyio and
trio cancel by level: everything awaited inside a cancelled scope is cancelled. So clean-up runs
in a task of its own on asyncio, strongly referenced (a loop keeps only weak references,
sqlalchemy#8516), and behind a shield everywhere.
"""

from __future__ import annotations

import sys
from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine
    from typing import Any, TypeVar

    import anyio

    T = TypeVar("T")

_running: set[asyncio.Task[Any]] = set()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The asyncio loop that runs in this thread, or None: on trio, and where nothing runs."""
    if "asyncio" not in sys.modules:
        return None
    import asyncio

    loop: asyncio.AbstractEventLoop | None = asyncio._get_running_loop()
    return loop


def current_task() -> asyncio.Task[Any] | None:
    """The asyncio task that runs here, or None."""
    if running_loop() is None:
        return None
    import asyncio

    return asyncio.current_task()


def spawn(
    func: Callable[..., Coroutine[Any, Any, object]], *args: object
) -> asyncio.Task[Any] | None:
    """Start *func* in a task that belongs to the loop and to nobody else. It must not raise."""
    loop = running_loop()
    if loop is None:
        import contextvars

        import trio

        trio.lowlevel.spawn_system_task(func, *args, context=contextvars.copy_context())
        return None
    task = loop.create_task(func(*args))
    _running.add(task)
    task.add_done_callback(_running.discard)
    return task


async def shielded(func: Callable[..., Coroutine[Any, Any, T]], *args: object) -> T:
    """Await ``func(*args)`` to its end, however often the caller is cancelled meanwhile.

    A cancellation that came meanwhile is raised afterwards: it is late, not lost.
    """
    loop = running_loop()
    if loop is None:
        return await _behind_shield(func, args)
    task = loop.create_task(_outcome(func, args))
    _running.add(task)
    task.add_done_callback(_running.discard)
    cancelled = await _outlast(task)
    result, error = task.result()
    if error is not None:
        raise error
    if cancelled is not None:
        raise cancelled
    return result  # type: ignore[return-value]


async def _behind_shield(
    func: Callable[..., Coroutine[Any, Any, T]], args: tuple[object, ...]
) -> T:
    import anyio

    with anyio.CancelScope(shield=True):
        return await func(*args)
    raise AssertionError("nothing cancels this scope")


async def _outcome(
    func: Callable[..., Coroutine[Any, Any, T]], args: tuple[object, ...]
) -> tuple[T | None, BaseException | None]:
    # A KeyboardInterrupt that leaves a task stops the loop; carried over, it stops the caller.
    try:
        return await func(*args), None
    except BaseException as exc:
        return None, exc


async def _outlast(task: asyncio.Task[Any]) -> BaseException | None:
    """Wait for *task*, whatever happens to the waiter. Returns the last cancellation, if any."""
    import asyncio

    cancelled: BaseException | None = None
    shield: Any = None
    if "anyio" in sys.modules:
        # Without it a cancelled anyio scope cancels the wait anew in every turn of the loop.
        import anyio

        shield = anyio.CancelScope(shield=True)
        shield.__enter__()
    try:
        while not task.done():
            try:
                await asyncio.wait((task,))
            except asyncio.CancelledError as exc:
                cancelled = exc
    finally:
        if shield is not None:
            shield.__exit__(None, None, None)
    return cancelled


class Latch:
    """An event that is set once, and that threads and tasks can both wait for."""

    __slots__ = ("_closed", "_is_set", "_wakers")

    def __init__(self) -> None:
        self._closed = allocate_lock()  # held until it is set; threads queue for it
        self._closed.acquire()
        self._is_set = False
        self._wakers: list[Callable[[], object]] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        """Set it. Only the first time does anything."""
        if self._is_set:
            return
        self._is_set = True
        self._closed.release()
        while self._wakers:
            try:
                wake = self._wakers.pop(0)  # who came first goes on first
            except IndexError:
                break
            try:
                wake()
            except RuntimeError:  # the loop of that waiter is closed, so nobody waits
                pass

    def set_soon(self) -> None:
        """Set it from a signal handler: this thread may be asleep in the very wait, or its loop."""
        from _thread import start_new_thread

        start_new_thread(self.set, ())

    def wait(self, seconds: float | None = None) -> bool:
        """Wait in this thread, at most so long. True if it is set."""
        if self._closed.acquire(timeout=-1 if seconds is None else max(0.0, seconds)):
            self._closed.release()
            return True
        return False

    async def wait_async(self) -> None:
        """Wait in this task. Whoever sets it may be in another thread, or on another loop."""
        import anyio

        event = anyio.Event()
        loop = running_loop()
        if loop is not None:

            def wake() -> None:
                if running_loop() is loop:
                    event.set()
                else:
                    loop.call_soon_threadsafe(event.set)
        else:
            import trio

            token = trio.lowlevel.current_trio_token()

            def wake() -> None:
                if trio.lowlevel.in_trio_run() and trio.lowlevel.current_trio_token() is token:
                    event.set()
                else:
                    token.run_sync_soon(event.set)

        self._wakers.append(wake)
        try:
            if not self._is_set:
                await event.wait()
        finally:
            if wake in self._wakers:
                self._wakers.remove(wake)


class Keeper:
    """A task of its own that enters something, stays, and leaves it, all in that one task.

    Async context managers care about the task they are entered and left in (anyio's task groups
    insist on it), and nobody outside may cancel them in the middle. ``main`` calls
    ``keeper.ready(value)`` when it is in, awaits ``keeper.told()``, and then leaves.

    *on_cancel* is called when somebody cancels the keeper itself: ``asyncio.run`` does at its
    end, to every task at once. Leaving in the right order is then the business of the owner.
    """

    def __init__(self, main: Callable[[Keeper], Coroutine[Any, Any, None]], name: str) -> None:
        self._main = main
        self.name = name
        self.on_cancel: Callable[[], object] | None = None
        self.value: Any = None
        self.error: BaseException | None = None
        self.is_ready = False
        self.is_done = False
        self._scope: anyio.CancelScope
        # Not events of one loop: the worker may be closed from another one.
        self._changed = Latch()  # ready or done
        self._told = Latch()
        self._done = Latch()

    async def open(self) -> Any:
        """Start, wait until it is in, and return the value. Raises what entering raised."""
        import anyio

        self._scope = anyio.CancelScope(shield=True)
        task = spawn(self._run)
        if task is None:
            spawn(self._watch)  # trio: the shield hides the end of the run from the keeper
        else:
            task.set_name(f"lifeguard: {self.name}")
        try:
            await self._changed.wait_async()
        except BaseException:  # whoever opens gives up: so does the opening
            self._scope.cancel()
            await shielded(self._done.wait_async)
            raise
        if not self.is_ready and self.error is not None:
            raise self.error
        return self.value

    async def close(self) -> None:
        """Tell it to leave, and wait until it has. Raises what leaving raised."""
        self._told.set()
        try:
            await self._done.wait_async()
        except BaseException:  # only the clock gets through the shield: leave now
            self._scope.cancel()
            raise
        error, self.error = self.error, None
        if error is not None:
            raise error

    def ready(self, value: Any = None) -> None:
        self.value = value
        self.is_ready = True
        self._changed.set()

    async def told_within(self, seconds: float) -> bool:
        """Wait until it is time to leave, at most so long. True if it is."""
        import anyio

        with anyio.move_on_after(seconds) as scope:
            await self.told(scope)
            return True
        return False

    async def told(self, scope: anyio.CancelScope | None = None) -> None:
        """Wait until it is time to leave. *scope* is the caller's own, which may end the wait."""
        try:
            await self._told.wait_async()
        except BaseException:
            if self._scope.cancel_called or self.on_cancel is None:
                raise
            if scope is not None and scope.cancel_called:
                raise
            _uncancel()
            self.on_cancel()
            await self._told.wait_async()

    async def _run(self) -> None:
        try:
            with self._scope:
                await self._main(self)
        except BaseException as exc:
            self.error = exc
        finally:
            if self._scope.cancelled_caught and self.error is None:
                self.error = TimeoutError(f"{self.name} was cancelled")
            self.is_done = True
            self._changed.set()
            self._done.set()

    async def _watch(self) -> None:
        import anyio

        try:
            await self._done.wait_async()
        except BaseException:
            if self.on_cancel is not None:
                self.on_cancel()
            with anyio.CancelScope(shield=True):
                await self._done.wait_async()
            raise


def _uncancel() -> None:
    task = current_task()
    if task is not None:
        task.uncancel()


def finish_on(
    loop: asyncio.AbstractEventLoop, func: Callable[[], Coroutine[Any, Any, object]], grace: float
) -> bool:
    """Run *func* on *loop* from outside of it, for at most *grace* seconds.

    False where that cannot be: the loop is closed, or it is the one that is running right here.
    A loop that was stopped but not closed (daphne leaves it so) is run a little longer.
    """
    import asyncio

    if loop.is_closed():
        return False
    if not loop.is_running():
        if asyncio._get_running_loop() is not None:
            return False
        loop.run_until_complete(asyncio.wait_for(func(), grace))
        return True
    if running_loop() is loop:
        return False
    asyncio.run_coroutine_threadsafe(func(), loop).result(grace)
    return True
