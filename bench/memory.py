"""What a unit keeps in memory while its request is under way."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from contextlib import ExitStack
from itertools import islice

from starlette.types import Receive, Scope, Send

from bench._measure import Plan, Run, Variant, interleave
from bench._report import Group
from bench._serve import Prepare, asgi_host, contexts_with
from bench.asgi import around, exit_stack, guarded, passthrough, same, under_dishka, under_svcs

__all__ = ["measure"]

REQUESTS = 1000
BARE, PASS = "bare", "1 pass-through"
GUARDED = "lifeguard, nothing registered"


class Waiting:
    """An app whose requests all stay inside it until they are let go."""

    def __init__(self) -> None:
        self.gate: asyncio.Future[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError("this app speaks http only")
        assert self.gate is not None
        await self.gate


waiting = Waiting()


def memory_variant(name: str, prepare: Prepare) -> Variant:
    """The bytes held by requests, a task and a context each, that all wait inside the app."""

    def start(stack: ExitStack) -> Run:
        runner, host = asgi_host(stack, prepare)
        contexts = contexts_with(3)

        async def requests(count: int) -> int:
            loop = asyncio.get_running_loop()
            gate = waiting.gate = loop.create_future()
            gc.collect()  # empties the interpreter's free lists, too: what is allocated now is seen
            tracemalloc.start()
            before, _ = tracemalloc.get_traced_memory()
            tasks = [
                loop.create_task(host.request(), context=context.copy())
                for context in islice(contexts, count)
            ]
            await asyncio.sleep(0)  # one turn of the loop: every task runs as far as the gate
            after, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            gate.set_result(None)
            await asyncio.gather(*tasks)
            return after - before

        return lambda count: runner.run(requests(count))

    return Variant(name, start)


def measure(plan: Plan) -> Group:
    group = Group("memory", f"memory: per request, {REQUESTS} of them under way", "B")
    variants = [
        memory_variant(BARE, around(same, waiting)),
        memory_variant(PASS, around(passthrough, waiting)),
        memory_variant(GUARDED, guarded(waiting)),
        memory_variant("svcs", under_svcs(waiting)),
        memory_variant("dishka", under_dishka(waiting)),
        memory_variant("AsyncExitStack", around(exit_stack, waiting)),
    ]
    group.add(interleave(variants, rounds=3, inner=REQUESTS), bare=BARE)
    over = group.added(GUARDED) - group.added(PASS)
    group.target("idle unit", "added to a request through one pass-through", over, 350, "B")
    return group
