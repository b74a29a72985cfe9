"""How long a backend outlives a client that was killed or frozen, with the safety net and without.

``python -m tests.examples.safety_net`` prints the tables of docs/pools.md, in about a minute:
seconds until the backend is gone, and what the net adds to making a connection. The clients are
processes of their own: this module again, with two arguments.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg_pool import AsyncNullConnectionPool, ConnectionPool, NullConnectionPool

import lifeguard
from lifeguard.testing import Postgres, postgres

ROOT = Path(__file__).parents[2]
LOCK = 77_001  # an advisory lock that is taken, for those who wait for it
LIMIT = 20.0  # seconds that are waited for a backend with the net, where it takes half a one


@dataclass(frozen=True)
class Case:
    """What a client is in the middle of, and how it is stopped."""

    name: str
    query: str
    state: str = "active"
    signal: signal.Signals = signal.SIGKILL
    overrides: tuple[tuple[str, str], ...] = ()


CASES = (
    Case("killed, idle", "SELECT 1; COMMIT", "idle"),
    Case("killed, idle in transaction", "SELECT 1", "idle in transaction"),
    Case("killed in pg_sleep", "SELECT pg_sleep(60)"),
    Case(
        "killed in a CPU query",
        "SELECT sum(x) FROM (SELECT generate_series(1, 10000000000) AS x) AS long",
    ),
    Case("killed while it waits for a lock", f"SELECT pg_advisory_xact_lock({LOCK})"),
    Case(
        "frozen, idle in transaction (idle_in_transaction_session_timeout 1s)",
        "SELECT 1",
        "idle in transaction",
        signal.SIGSTOP,
        (("idle_in_transaction_session_timeout", "1s"),),
    ),
)


def be_client(dsn: str, case: Case, guarded: bool) -> None:
    """In a process of its own: say which backend is ours, and do what the case wants."""
    guard = lifeguard.Lifeguard(safety_net=dict(case.overrides) if guarded else False)
    pool = ConnectionPool(dsn, open=False, min_size=1, max_size=1)
    with guard.worker(resources=[pool]):
        conn = pool.getconn()
        print(conn.info.backend_pid, flush=True)
        conn.execute(case.query)
        signal.pause()


@contextmanager
def client(pg: Postgres, case: Case, guarded: bool) -> Iterator[tuple[int, int]]:
    """A client in that state: its pid, and its backend's."""
    number = str(CASES.index(case))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.examples.safety_net", number, "net" if guarded else "bare"],
        cwd=ROOT,
        env={**os.environ, "LIFEGUARD_DSN": pg.dsn},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    backend = 0
    try:
        backend = int(process.stdout.readline())
        deadline = time.monotonic() + LIMIT
        while (state := state_of(pg, backend)) != case.state:
            assert time.monotonic() < deadline, f"the backend is {state!r}, not {case.state!r}"
            time.sleep(0.01)
        yield process.pid, backend
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if backend:
            with pg.connect() as conn:
                conn.execute("SELECT pg_terminate_backend(%s)", [backend])


def state_of(pg: Postgres, backend: int) -> str | None:
    """What *backend* does, or None if it is gone."""
    with pg.connect(application_name="watcher") as conn:
        query = "SELECT state FROM pg_stat_activity WHERE pid = %s"
        row = conn.execute(query, [backend]).fetchone()
    return None if row is None else str(row[0])


def seconds_until_gone(pg: Postgres, backend: int, limit: float) -> float | None:
    """None where it is still there after *limit* seconds."""
    began = time.monotonic()
    with pg.connect(application_name="watcher") as conn:
        while time.monotonic() - began < limit:
            query = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
            row = conn.execute(query, [backend]).fetchone()
            if row == (0,):
                return time.monotonic() - began
            time.sleep(0.01)
    return None


def compare(pg: Postgres, case: Case, longer: float = 0.0) -> tuple[float | None, str | None]:
    """Stop a client with the net and one without at the same time: seconds until the backend of
    the first is gone, and what the other one's does *longer* seconds later (None: gone)."""
    with pg.connect() as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        with (
            client(pg, case, guarded=True) as (pid, backend),
            client(pg, case, guarded=False) as (bare_pid, bare_backend),
        ):
            os.kill(bare_pid, case.signal)
            os.kill(pid, case.signal)
            seconds = seconds_until_gone(pg, backend, LIMIT)
            seconds_until_gone(pg, bare_backend, longer)
            return seconds, state_of(pg, bare_backend)


def connecting(dsn: str, safety_net: bool, rounds: int) -> list[float]:
    """Milliseconds for each new connection of a pool that keeps none."""
    guard = lifeguard.Lifeguard(safety_net=safety_net)
    pool = NullConnectionPool(dsn, open=False, max_size=1)
    times = []
    with guard.worker(resources=[pool]):
        for _ in range(rounds):
            began = time.perf_counter()
            conn = pool.getconn()
            times.append((time.perf_counter() - began) * 1000)
            pool.putconn(conn)
    return times


async def aconnecting(dsn: str, safety_net: bool, rounds: int) -> list[float]:
    guard = lifeguard.Lifeguard(safety_net=safety_net)
    pool = AsyncNullConnectionPool(dsn, open=False, max_size=1)
    times = []
    async with guard.worker(resources=[pool]):
        for _ in range(rounds):
            began = time.perf_counter()
            conn = await pool.getconn()
            times.append((time.perf_counter() - began) * 1000)
            await pool.putconn(conn)
    return times


def print_price(pg: Postgres) -> None:
    """With and without take turns, and the medians are compared: the machine may be busy."""
    for way, dsn in (("TCP", pg.dsn), ("unix socket", pg.socket_dsn)):
        if dsn is None:
            continue
        for kind in ("sync", "async"):
            times: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(10):
                for safety_net in times:
                    times[safety_net] += (
                        connecting(dsn, safety_net, 20)
                        if kind == "sync"
                        else asyncio.run(aconnecting(dsn, safety_net, 20))
                    )
            without, with_net = statistics.median(times[False]), statistics.median(times[True])
            print(
                f"a connection over {way}, {kind}: {without:.2f} ms, with the net {with_net:.2f} ms"
            )


def main() -> None:
    if len(sys.argv) == 3:
        be_client(os.environ["LIFEGUARD_DSN"], CASES[int(sys.argv[1])], sys.argv[2] == "net")
        return
    with postgres() as pg, pg.connect() as conn:
        print(f"PostgreSQL {conn.info.server_version}, psycopg {psycopg.__version__}")
        for case in CASES:
            seconds, bare = compare(pg, case, longer=3)
            said = "nothing" if seconds is None else f"{seconds:.2f} s"
            print(f"{case.name}: gone after {said}; without the net: {bare or 'gone'}", flush=True)
        print_price(pg)


if __name__ == "__main__":
    main()
