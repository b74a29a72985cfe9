"""What a unit adds to an ASGI request: against pass-throughs, svcs, dishka and an exit stack."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack

import dishka
import svcs.starlette
from dishka.integrations.starlette import ContainerMiddleware
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

import lifeguard
from bench._borrow import borrow_and_return
from bench._measure import Plan, Variant, interleave
from bench._report import Group
from bench._serve import (
    BODY,
    START,
    Host,
    Prepare,
    asgi_task_variant,
    asgi_variant,
    bare_app,
    served,
)

__all__ = [
    "around",
    "exit_stack",
    "guarded",
    "measure",
    "passthrough",
    "same",
    "under_dishka",
    "under_svcs",
]

BARE = "bare"
TEN = "10 pass-throughs"
IDLE = "lifeguard, nothing registered"
BORROW = "lifeguard, one borrow and return"
BORROW_TEN = f"{TEN}, one call that borrows nothing"
SVCS = "svcs"


def passthrough(app: ASGIApp) -> ASGIApp:
    """The least a middleware can be."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    return middleware


def same(app: ASGIApp) -> ASGIApp:
    return app


def ten_passthroughs(app: ASGIApp) -> ASGIApp:
    for _ in range(10):
        app = passthrough(app)
    return app


def exit_stack(app: ASGIApp) -> ASGIApp:
    """What one writes by hand with the standard library, before there is anything to close."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        async with AsyncExitStack():
            await app(scope, receive, send)

    return middleware


def exit_stack_with_callback(app: ASGIApp) -> ASGIApp:
    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as stack:
            stack.callback(nothing)
            await app(scope, receive, send)

    return middleware


def nothing() -> None:
    pass


def calling(function: Callable[[], None]) -> ASGIApp:
    """The bare app, and inside of each request one call."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError("this app speaks http only")
        function()
        await send(START)
        await send(BODY)

    return app


def register() -> None:
    lifeguard.callback(nothing)


def around(middleware: Callable[[ASGIApp], ASGIApp], app: ASGIApp) -> Prepare:
    """``app`` in a middleware that needs no preparation."""

    async def prepare(stack: AsyncExitStack) -> Host:
        return Host(middleware(app))

    return prepare


def guarded(app: ASGIApp, *resources: object) -> Prepare:
    """``app`` wrapped, its worker opened by a real startup: what requests meet in production."""

    async def prepare(stack: AsyncExitStack) -> Host:
        wrapped: ASGIApp = lifeguard.wrap(app, resources=resources)
        await stack.enter_async_context(served(wrapped))
        return Host(wrapped)

    return prepare


def under_svcs(app: ASGIApp) -> Prepare:
    """svcs' middleware for Starlette, which is pure ASGI, and the state its lifespan leaves."""

    async def prepare(stack: AsyncExitStack) -> Host:
        state = await stack.enter_async_context(svcs.starlette.lifespan(no_services)(Starlette()))
        return Host(svcs.starlette.SVCSMiddleware(app), state=state)

    return prepare


async def no_services(
    app: Starlette, registry: svcs.Registry
) -> AsyncGenerator[dict[str, object], None]:
    yield {}


def under_dishka(app: ASGIApp) -> Prepare:
    """dishka's container middleware, and the Starlette app that it expects its container on."""

    async def prepare(stack: AsyncExitStack) -> Host:
        starlette = Starlette()
        starlette.state.dishka_container = dishka.make_async_container(dishka.Provider())
        return Host(ContainerMiddleware(app), framework=starlette)

    return prepare


def measure(plan: Plan) -> Group:
    group = Group("asgi", "ASGI: one request; 3 other context variables unless said", "ns")
    bare, ten, idle = (
        around(same, bare_app),
        around(ten_passthroughs, bare_app),
        guarded(bare_app),
    )
    variants = [
        asgi_variant(BARE, bare),
        asgi_variant("bare again (the resolution)", bare),
        asgi_variant("1 pass-through", around(passthrough, bare_app)),
        asgi_variant(TEN, ten),
        asgi_variant(IDLE, idle),
        asgi_variant("lifeguard, one callback", guarded(calling(register))),
        asgi_variant(SVCS, under_svcs(bare_app)),
        asgi_variant("dishka", under_dishka(bare_app)),
        asgi_variant("AsyncExitStack", around(exit_stack, bare_app)),
        asgi_variant("AsyncExitStack, one callback", around(exit_stack_with_callback, bare_app)),
    ]
    compare(group, variants, rounds=plan.rounds, inner=1000)
    borrowing = calling(borrow_and_return)
    variants = [
        asgi_variant(f"{BARE}, one call that borrows nothing", around(same, borrowing)),
        asgi_variant(BORROW_TEN, around(ten_passthroughs, borrowing)),
        asgi_variant(BORROW, guarded(borrowing)),
    ]
    compare(group, variants, rounds=plan.rounds, inner=1000)
    these = {BARE: bare, TEN: ten, IDLE: idle}
    for count in (0, 12):
        variants = [
            asgi_variant(f"{name}, {count} variables", prepare, variables=count)
            for name, prepare in these.items()
        ]
        compare(group, variants, rounds=plan.rounds // 2, inner=1000)
    # The loop's own work is most of these, so they resolve less. They confirm the rows above.
    variants = [asgi_task_variant(f"{name}, as tasks", prepare) for name, prepare in these.items()]
    compare(group, variants, rounds=plan.rounds // 2, inner=500)

    ratio = group.added_ratio
    group.target("idle unit", f"added / added by {TEN}", ratio(IDLE, TEN), 0.6)
    group.target("idle unit", f"added / added by {SVCS}", ratio(IDLE, SVCS), 0.5)
    group.target(
        "one borrow and return", f"added / added by {TEN}", ratio(BORROW, BORROW_TEN), 0.75
    )
    return group


def compare(group: Group, variants: Sequence[Variant], *, rounds: int, inner: int) -> None:
    """Interleave ``variants``: the first is the bare app, the pass-throughs are the yardstick."""
    samples = interleave(variants, rounds=rounds, inner=inner)
    yardstick = next(name for name in samples if name.startswith(TEN))
    group.add(samples, bare=variants[0].name, yardstick=yardstick)
