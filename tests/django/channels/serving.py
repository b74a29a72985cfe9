"""The project on a real server, and tabs of browsers that stay open."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio import client as aio
from websockets.exceptions import ConnectionClosed
from websockets.sync import client

from lifeguard.testing import Postgres
from tests.servers import rows
from tests.servers.harness import FINISH_WITHIN, Server

LANES = 4
"""As in the settings: also how many connections the native pool has."""

KEEPS = ("nothing", "for a minute", "in a pool")
"""Between messages: CONN_MAX_AGE=0, CONN_MAX_AGE=60, and Django's native pool."""

SERVERS = ("uvicorn", "daphne")
WITHIN = 20.0

_ROWS = {row.name: row for row in rows.ROWS}


class Tab:
    """An open websocket."""

    def __init__(self, connection: client.ClientConnection) -> None:
        self.connection = connection

    def send(self, do: str, **content: Any) -> None:
        self.connection.send(json.dumps({"do": do, **content}))

    def receive(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.connection.recv(timeout=WITHIN))
        return answer

    def ask(self, do: str, **content: Any) -> dict[str, Any]:
        self.send(do, **content)
        return self.receive()

    def is_cut_off(self) -> bool:
        try:
            self.receive()
        except ConnectionClosed:
            return True
        return False

    def close(self) -> None:
        self.connection.close()


class Site(Server):
    """One server with one setting, bare or guarded."""

    def __init__(
        self,
        server: str,
        keeps: str,
        folder: Path,
        pg: Postgres,
        dsn: str,
        name: str,
        cookies: dict[str, str],
        *,
        bare: bool = False,
    ) -> None:
        row = replace(_ROWS[server], app="tests.django.channels.asgi:application")
        env = {"CHANNELS_KEEPS": keeps, "APP_DSN": dsn}
        super().__init__(row, folder, pg, name, bare=bare, env=env)
        self.keeps = keeps
        self.cookies = cookies
        self.patience = 1.0 if bare else FINISH_WITHIN
        """Seconds until what is not over counts as left behind."""

    # -- clients -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def tab(self, path: str, user: str = "ann") -> Iterator[Tab]:
        with client.connect(
            f"ws://127.0.0.1:{self.port}/{path}",
            additional_headers={"Cookie": self.cookies[user]},
            proxy=None,
            open_timeout=WITHIN,
        ) as connection:
            yield Tab(connection)

    @contextlib.contextmanager
    def tabs(self, *paths: str) -> Iterator[list[Tab]]:
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(self.tab(path)) for path in paths]

    def say(self, room: str, text: str) -> str:
        url = f"http://127.0.0.1:{self.port}/say"
        answer = httpx.get(url, params={"room": room, "text": text}, timeout=15, trust_env=False)
        assert answer.status_code == 200, self.tail()
        return answer.text

    @contextlib.asynccontextmanager
    async def crowd(self, number: int, path: str) -> AsyncIterator[list[dict[str, Any]]]:
        """So many open tabs at once, in one event loop. Each has asked one question."""
        few = asyncio.Semaphore(32)  # that are about to connect

        async def open_one() -> tuple[aio.ClientConnection, dict[str, Any]]:
            async with few:
                connection = await aio.connect(
                    f"ws://127.0.0.1:{self.port}/{path}",
                    additional_headers={"Cookie": self.cookies["ann"]},
                    proxy=None,
                    ping_interval=None,
                    open_timeout=WITHIN,
                )
                await connection.send(json.dumps({"do": "query"}))
                async with asyncio.timeout(WITHIN):
                    return connection, json.loads(await connection.recv())

        tabs = [asyncio.create_task(open_one()) for _ in range(number)]
        try:
            yield [(await tab)[1] for tab in tabs]
        finally:
            done = await asyncio.gather(*tabs, return_exceptions=True)
            await asyncio.gather(*(tab[0].close() for tab in done if isinstance(tab, tuple)))

    # -- what is left --------------------------------------------------------------------------

    def allowed(self) -> int:
        """How many connections may stay when nobody asks for anything."""
        return {"nothing": 0, "for a minute": LANES, "in a pool": LANES}[self.keeps]

    def left(self, at_most: int | None = None) -> int:
        """How many connections there are, once they are no more than that, or after a while."""
        at_most = self.allowed() if at_most is None else at_most
        deadline = time.monotonic() + self.patience
        while True:
            number = self.pg.count(self.application_name)
            if number <= at_most or time.monotonic() > deadline:
                return number
            time.sleep(0.02)

    def is_whole(self) -> None:
        """Nothing is left behind, and as many as there are lanes can work at the same time."""
        assert self.left() <= self.allowed()
        at = self.new_id()
        with self.tabs(*["sync", "async"] * (LANES // 2)) as tabs:
            for tab in tabs:
                tab.send("meet", at=at, parties=LANES, timeout=WITHIN)
            answers = [tab.receive() for tab in tabs]
        assert all(answer["met"] for answer in answers)
        assert len({answer["backend"] for answer in answers}) == LANES
        assert self.left() <= self.allowed()


def allow_open_files(number: int) -> None:
    """Raise the soft limit of this process, and of what it starts from now on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    assert soft == resource.RLIM_INFINITY or soft >= number, (
        f"this machine allows {hard} open files, and the test needs {number}: ulimit -Hn"
    )
