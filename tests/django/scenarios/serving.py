"""The project on a real server, its clients, and what may be left of it."""

from __future__ import annotations

import contextlib
import http.client
import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from lifeguard.testing import Postgres
from tests.django.versions import HERE, python_path
from tests.servers import rows
from tests.servers.harness import FINISH_WITHIN, Server, reset

LANES = 4
"""As in the settings: also how many connections a native pool has."""

KEEPS = ("nothing", "for a minute", "in a pool")
"""Between requests: CONN_MAX_AGE=0, CONN_MAX_AGE=60, and Django's native pool."""

SERVERS = {
    "uvicorn": "",
    "daphne": "--application-close-timeout 1",
    "hypercorn asyncio": "",
    "granian asgi": "",
    "gunicorn asgi": "--asgi-disconnect-grace-period 1",
}
CANCELS = ("daphne", "gunicorn asgi")
"""Servers that cancel an app a while after its client has left: one second, as started here."""

_ROWS = {row.name: row for row in rows.ROWS}


@dataclass(frozen=True)
class Answer:
    status: int
    body: str


class Site(Server):
    """One server with one setting, bare or guarded."""

    def __init__(
        self,
        server: str,
        keeps: str,
        folder: Path,
        pg: Postgres,
        name: str,
        *,
        bare: bool = False,
        pool_timeout: float = 10.0,
        django: str = HERE,
    ) -> None:
        row = replace(_ROWS[server], app="tests.django.scenarios.asgi:application")
        env = {
            "SCENARIO_KEEPS": keeps,
            "SCENARIO_POOL_TIMEOUT": str(pool_timeout),
            "PYTHONPATH": python_path(django),
        }
        super().__init__(row, folder, pg, name, bare=bare, more=SERVERS[server], env=env)
        self.keeps = keeps
        self.listens = not django.startswith("4.")
        """Whether Django listens for a disconnect."""
        self.cancels = server in CANCELS
        self.threads = 0
        """Threads that live on beside the lanes and may keep a connection as long as they do."""
        self.patience = 1.0 if bare else FINISH_WITHIN
        """Seconds until what is not over counts as left behind."""

    # -- clients -------------------------------------------------------------------------------

    def ask(self, path: str, request: str | None = None, *, patience: float = 30.0) -> Answer:
        """A GET. What the server cuts off, or never ends, has status 0 or what came of it."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=patience)
        joint = "&" if "?" in path else "?"
        status, body = 0, b""
        with contextlib.closing(client):
            try:
                client.request("GET", f"/{path}{joint}id={request or self.new_id()}")
                response = client.getresponse()
                status = response.status
                body = response.read()
            except http.client.IncompleteRead as exc:
                body = exc.partial
            except (http.client.HTTPException, ConnectionError, TimeoutError):
                pass
        return Answer(status, body.decode())

    def ask_all(self, paths: list[str], at_once: int, *, patience: float = 30.0) -> list[Answer]:
        with ThreadPoolExecutor(at_once) as clients:
            return list(clients.map(lambda path: self.ask(path, patience=patience), paths))

    @contextlib.contextmanager
    def asking(self, path: str, *, until: str = "working") -> Iterator[tuple[str, socket.socket]]:
        """A request in flight, which got as far as the app's word *until*."""
        request = self.new_id()
        joint = "&" if "?" in path else "?"
        with socket.create_connection(("127.0.0.1", self.port), timeout=15) as client:
            head = f"GET /{path}{joint}id={request} HTTP/1.1\r\nHost: localhost\r\n\r\n"
            client.sendall(head.encode())
            self.wait_for(until, request)
            yield request, client

    def ask_and_leave(self, path: str) -> str:
        """A client that is gone when the app has said "working". The gate is still closed."""
        with self.asking(path) as (request, client):
            reset(client)
        return request

    def post(self, path: str, body: bytes, *, length: int | None = None) -> bytes:
        """A POST. One that says a larger *length* is cut off after *body*."""
        cut = length is not None
        head = (
            f"POST /{path}?id={self.new_id()} HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Length: {length or len(body)}\r\nConnection: close\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", self.port), timeout=15) as client:
            client.sendall(head.encode() + body)
            if cut:
                reset(client)
                return b""
            answer = b""
            while chunk := client.recv(65536):
                answer += chunk
            return answer

    def seconds(self, path: str, times: int) -> list[float]:
        """How long each of so many requests took, one after another."""
        took = []
        for _ in range(times):
            begin = time.perf_counter()
            assert self.ask(path).status == 200
            took.append(time.perf_counter() - begin)
        return took

    # -- what is left --------------------------------------------------------------------------

    def connections(self, at_most: int) -> int:
        """How many there are once they are no more than that, or after a while."""
        deadline = time.monotonic() + self.patience
        while True:
            number = self.pg.count(self.application_name)
            if number <= at_most or time.monotonic() > deadline:
                return number
            time.sleep(0.02)

    def unfinished(self) -> dict[str, tuple[int, int]]:
        """Requests that did not end exactly once: how often each started, and finished."""
        deadline = time.monotonic() + self.patience
        while True:
            events = self.events.read("started", "finished")
            counts = Counter((event["id"], event.event) for event in events)
            wrong = {
                request: (counts[request, "started"], counts[request, "finished"])
                for request in {event["id"] for event in events}
                if (counts[request, "started"], counts[request, "finished"]) != (1, 1)
            }
            late = any(finished > 1 for _, finished in wrong.values())
            if not wrong or late or time.monotonic() > deadline:
                return wrong
            time.sleep(0.02)

    def allowed(self) -> int:
        """How many connections may stay, when nobody asks for anything."""
        return {"nothing": 0, "for a minute": LANES + self.threads, "in a pool": LANES}[self.keeps]

    def meets(self) -> list[Answer]:
        """As many requests as there may be connections, each of which waits for the others."""
        return self.ask_all([f"meet?at={self.new_id()}"] * LANES, LANES)

    def is_whole(self) -> None:
        """Nothing is left of what came before, and everybody is served."""
        assert self.unfinished() == {}
        assert self.connections(self.allowed()) <= self.allowed()
        assert self.meets() == [Answer(200, "met")] * LANES
        answers = self.ask_all(["plain", "aplain"] * 6, at_once=6)
        assert [answer.status for answer in answers] == [200] * 12
        assert self.connections(self.allowed()) <= self.allowed()
        assert self.unfinished() == {}


def median(times: list[float]) -> float:
    return statistics.median(times)
