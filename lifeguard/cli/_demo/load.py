"""The users: real HTTP requests whose answers are checked, and clients that leave in the middle.

Where the server is a Celery worker they send tasks instead, and check the results.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from typing import TYPE_CHECKING, Any, Self

import httpx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from .model import Tally

PATIENCE = 2.0
PATIENCE_FOR_TASKS = 5.0
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


class Producer:
    """Sends tasks to a worker whose broker is a folder, and looks for their results there."""

    def __init__(self, folder: Path, task: str) -> None:
        from celery import Celery

        self._task = task
        self._queue, self._unsent = folder / "queue", folder / "unsent"
        self._unsent.mkdir(exist_ok=True)
        self._app = Celery(broker="filesystem://", backend=f"file://{folder}/results")
        self._app.conf.broker_transport_options = {
            "data_folder_in": str(self._queue),
            "data_folder_out": str(self._unsent),
            "control_folder": str(folder / "control"),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._app.close()

    def _send(self, token: str) -> Any:
        result = self._app.send_task(self._task, [token])
        # kombu writes a message where a worker may read it when it is half there: so write it
        # elsewhere, and move it, which is done at once.
        for message in self._unsent.iterdir():
            message.rename(self._queue / message.name)
        return result

    async def ask(self, tally: Tally, name: str, *, until: float) -> None:
        """One user who has one task after the other done, and checks each result."""
        for number in itertools.count():
            if time.monotonic() >= until:
                return
            token = f"{name}-{number}-{name}"
            meta = await _result(self._send(token))
            if meta is None:
                tally.fail(f"no result within {PATIENCE_FOR_TASKS:.0f} s")
            elif meta["status"] == "FAILURE":
                tally.fail(_reason(f"{type(meta['result']).__name__}: {meta['result']}"))
            elif meta["result"] != token:
                tally.wrong += 1
            else:
                tally.ok += 1


async def _result(result: Any) -> dict[str, Any] | None:
    """What became of a task, or None if nothing did for too long."""
    from kombu.exceptions import DecodeError

    deadline = time.monotonic() + PATIENCE_FOR_TASKS
    while time.monotonic() < deadline:
        with contextlib.suppress(ValueError, EOFError, DecodeError):  # it is being written
            meta: dict[str, Any] = result.backend.get_task_meta(result.id, cache=False)
            if meta["status"] in ("SUCCESS", "FAILURE"):
                return meta
        await asyncio.sleep(0.02)
    return None
