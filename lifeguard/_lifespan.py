"""``@lifeguard.lifespan``: the lifespan of a Starlette, FastAPI or Litestar app.

Inside it is a context manager like any other, which frameworks know how to enter. It runs in a
task of its own, so that a server that cancels it, or never says goodbye, still gets it left once.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager

from ._core.lifetime import CLOSING, Call, describe
from ._core.observer import logger
from ._core.resource import find_adapter
from ._core.shield import Keeper, shielded
from .asgi import awaited, lifespan_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from typing import Any

    from ._core.resource import Adapter, Resource
    from ._wrap import Lifeguard


def make_lifespan(
    guard: Lifeguard,
    func: Any,
    resources: list[Resource[Any]],
    mounts: bool | Iterable[Any],
) -> Any:
    if func is None:
        return lambda func: make_lifespan(guard, _checked(func), resources, mounts)
    enter = _entering(_checked(func))
    inner = mounts if isinstance(mounts, bool) else list(mounts)

    async def stay(app: Any, keeper: Keeper) -> None:
        pools: list[Adapter] = []
        async with AsyncExitStack() as stack:
            stack.callback(_sweep, pools)
            state = await stack.enter_async_context(enter(app))
            for sub in _mounted(app) if inner is True else inner or ():
                theirs = await stack.enter_async_context(lifespan_of(sub))
                if theirs:  # one request.state serves all of them; the outer app's word counts
                    state = {**theirs, **(state or {})}
            for value in state.values() if isinstance(state, dict) else ():
                adapter = find_adapter(value, guard)  # a pool here is guarded like a declared one
                if adapter is not None:
                    pools.append(adapter)
            keeper.ready(state)
            await keeper.told()

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Any]:
        worker = await shielded(guard.aacquire, resources)
        if not guard.has_front_door:
            logger("worker").warning(
                "@lifeguard.lifespan opens and closes what %s needs, but its requests are no "
                "units, so what they borrow is not looked after: wrap the app as well, "
                "`app = lifeguard.wrap(app)` or `app.add_middleware(lifeguard.asgi.Middleware)`",
                describe(func),
            )
        dropped = False
        try:
            keeper = Keeper(lambda keeper: stay(app, keeper), "lifespan")
            keeper.on_cancel = lambda: None  # the worker closes, and this in its turn
            state = await shielded(keeper.open)

            async def leave() -> None:
                await worker.drain()
                await keeper.close()

            # For a server that never sends shutdown. The second to close finds nothing to do.
            worker.push(Call(keeper.close, awaits=True))
            try:
                yield state
            except GeneratorExit:  # thrown away with its loop: the worker's own end sees to it
                dropped = True
                raise
            finally:
                if not dropped:
                    await shielded(leave)
        finally:
            if awaited.get() and worker.state is CLOSING:
                worker.holders -= 1  # not aleave(): it waits for us, not we for it
            elif not dropped:
                await guard.aleave(worker)

    lifespan.__name__ = getattr(func, "__name__", "lifespan")
    lifespan.__doc__ = getattr(func, "__doc__", None)
    return lifespan


def _sweep(pools: list[Adapter]) -> None:
    """Shut what a pool's close, cut short by the end of the loop, has left open."""
    for adapter in pools:
        if getattr(adapter.obj, "closed", False):
            adapter.sweep()


def _checked(func: Any) -> Any:
    if not callable(func) or isinstance(func, type):
        raise TypeError(
            f"@lifeguard.lifespan cannot use {func!r}: decorate "
            "`async def lifespan(app): ...` that yields once"
        )
    return func


def _entering(func: Any) -> Callable[[Any], Any]:
    import inspect

    if inspect.isasyncgenfunction(func):
        return asynccontextmanager(func)
    if inspect.iscoroutinefunction(func) or inspect.isgeneratorfunction(func):
        raise TypeError(
            f"@lifeguard.lifespan cannot use {describe(func)}: it has to be an `async def` that "
            "yields once (or a function that returns an async context manager)"
        )
    return func  # type: ignore[no-any-return]


def _mounted(app: Any) -> list[Any]:
    """The ASGI apps that *app*'s routes mount, at any depth, each once, outermost first."""
    found: list[Any] = []
    routes = list(getattr(app, "routes", ()) or ())
    while routes:
        route = routes.pop(0)
        sub = getattr(route, "app", None)
        if sub is None or not hasattr(route, "routes"):
            continue
        if any(sub is other for other in found):
            continue
        found.append(sub)
        routes += list(getattr(sub, "routes", ()) or ())
    return found
