"""The users: real HTTP requests whose answers are checked, and clients that leave in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from .model import Tally

PATIENCE = 2.0
BASE = "http://demo"


@contextlib.asynccontextmanager
async def client(uds: Path, patience: float = PATIENCE) -> AsyncIterator[httpx.AsyncClient]:
    """One connection per request: nothing of one request can carry over into the next."""
    limits = httpx.Limits(max_keepalive_connections=0)
    transport = httpx.AsyncHTTPTransport(uds=str(uds), retries=2, limits=limits)
    async with httpx.AsyncClient(transport=transport, base_url=BASE, timeout=patience) as http:
        yield http


def _reason(text: str) -> str:
    return " ".join(text.split())[:120] or "empty answer"


async def echo_once(http: httpx.AsyncClient, tally: Tally, token: str) -> None:
    """Ask for a token and check that this very token comes back."""
    for attempt in (1, 2):
        try:
            answer = await http.get(f"/echo/{token}")
        except httpx.TimeoutException:
            tally.fail(f"no answer within {http.timeout.read:.0f} s")
        except httpx.TransportError as error:
            if attempt == 1:  # once, as every proxy does for a GET when a server goes away
                continue
            tally.fail(_reason(f"{type(error).__name__}: {error}"))
        else:
            if answer.status_code >= 500:
                tally.fail(_reason(answer.text))
            elif answer.status_code == 200 and answer.text != token:
                tally.wrong += 1
            else:
                tally.ok += 1
        return


async def ask(uds: Path, tally: Tally, name: str, *, until: float, pause: float) -> None:
    """One user who asks for one token after another."""
    async with client(uds) as http:
        for number in itertools.count():
            if time.monotonic() >= until:
                return
            await echo_once(http, tally, f"{name}-{number}")
            await asyncio.sleep(pause)


async def ask_missing(uds: Path, tally: Tally, *, until: float, pause: float) -> None:
    """One user who asks for what does not exist: the right answer is a 404."""
    async with client(uds) as http:
        while time.monotonic() < until:
            await asyncio.sleep(pause)
            await echo_once(http, tally, "missing")


async def leave_early(uds: Path, tally: Tally, *, until: float, pause: float) -> None:
    """One user who opens the live feed, sees a first event and walks away."""
    async with client(uds) as http:
        while time.monotonic() < until:
            await asyncio.sleep(pause)
            try:
                async with http.stream("GET", "/feed") as answer:
                    async for _ in answer.aiter_raw():
                        break
                    else:
                        tally.fail("feed: ended without an event")
                        continue
                tally.early += 1
            except httpx.TimeoutException:
                tally.fail(f"feed: no answer within {PATIENCE:.0f} s")
            except httpx.TransportError as error:
                tally.fail(_reason(f"feed: {type(error).__name__}: {error}"))


async def export_once(uds: Path, tally: Tally) -> None:
    """Fetch an export that is known to break off in the middle: right is a first row, then that."""
    async with client(uds) as http:
        begun = False
        try:
            async with http.stream("GET", "/export") as answer:
                async for _ in answer.aiter_raw():
                    begun = answer.status_code == 200
        except httpx.TimeoutException:
            tally.fail(f"export: no answer within {PATIENCE:.0f} s")
        except httpx.TransportError as error:
            if begun:
                tally.early += 1
            else:
                tally.fail(_reason(f"export: {type(error).__name__}: {error}"))
        else:
            tally.fail("export: it was to break off, and did not")


async def run_reports(uds: Path, tally: Tally, *, until: float) -> None:
    """One user who wants a slow report and asks again whenever a deploy cut it short."""
    async with client(uds, patience=60) as http:
        while time.monotonic() < until:
            try:
                async with asyncio.timeout_at(until - time.monotonic() + _loop_time()):
                    answer = await http.get("/report")
            except TimeoutError:
                tally.early += 1  # the demo is over, not the report
            except httpx.TransportError:
                tally.early += 1
            else:
                if answer.status_code == 200:
                    tally.ok += 1
                elif ":" in answer.text:  # the app's own words; a cut one has the server's
                    tally.fail(_reason(answer.text))
                else:
                    tally.early += 1
            await asyncio.sleep(0.1)


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
