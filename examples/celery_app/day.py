"""A day in the shop: start a worker, send it orders, look what it holds, and stop it.

Start it with ``python examples/run.py celery_app``.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import psycopg
from broker import find, shown
from celery.exceptions import TimeoutError as NotYet
from celery.result import AsyncResult

PATIENCE = 60.0


@contextmanager
def worker(children: int) -> Iterator[subprocess.Popen[bytes]]:
    """``celery worker`` for the block, ended as a deploy would end it."""
    command = ("celery", "-A", "shop", "worker", f"--concurrency={children}")
    process = subprocess.Popen([sys.executable, "-m", *command, "--loglevel=WARNING"])
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def gather(process: subprocess.Popen[bytes], results: Sequence[AsyncResult]) -> list[object]:
    """What each task has returned, or raised."""
    deadline = time.monotonic() + PATIENCE
    got: list[object] = []
    for result in results:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"the worker ended with status {process.returncode}")
            if time.monotonic() > deadline:
                raise SystemExit(f"no result within {PATIENCE:.0f} s: {result}")
            try:
                answer = result.get(timeout=1, propagate=False)
            except NotYet:
                continue
            if isinstance(answer, Exception) and type(answer).__name__ != "AlreadyCharged":
                raise SystemExit(f"task {result.id} failed: {answer!r}")
            got.append(answer)
            break
    return got


def held(conn: psycopg.Connection, name: str) -> dict[str, int]:
    """How many connections PostgreSQL has for each child."""
    rows = conn.execute(
        "SELECT split_part(application_name, ':', -1), count(*) FROM pg_stat_activity"
        " WHERE starts_with(application_name, %s) GROUP BY 1 ORDER BY 1",
        [f"{name}:"],
    ).fetchall()
    return dict(rows)


def left(conn: psycopg.Connection, name: str) -> int:
    """How many there still are: PostgreSQL sees a moment later that one was closed."""
    deadline = time.monotonic() + 10
    while (count := sum(held(conn, name).values())) and time.monotonic() < deadline:
        time.sleep(0.02)
    return count


def main(orders: int, children: int, url: str | None) -> None:
    with tempfile.TemporaryDirectory(prefix="lifeguard-shop-") as folder:
        os.environ["SHOP_BROKER"] = broker = find(url, folder)
        print(f"broker: {shown(broker)}")
        import shop

        with psycopg.connect(shop.DSN, autocommit=True, application_name="shop-office") as conn:
            conn.execute("DROP TABLE IF EXISTS shop_order")
            conn.execute("CREATE TABLE shop_order (number int, tries int DEFAULT 0)")
            with worker(children) as process:
                numbers = range(1, orders + 1)
                charged = gather(process, [shop.charge.delay(number) for number in numbers])
                paid = [n for n, got in zip(numbers, charged, strict=True) if isinstance(got, int)]
                shipped = gather(process, [shop.ship.delay(number) for number in paid])
                reports = [paid[start : start + 5] for start in range(0, len(paid), 5)]
                reported = gather(process, [shop.report.delay(numbers) for numbers in reports])
                there = held(conn, shop.NAME)
            failed = len(charged) - len(paid)
            print(f"charged: {len(paid)}, and {failed} failed and forgot their connection")
            print(f"shipped: {len(shipped)}, at the second try")
            tries = [number for got in reported if isinstance(got, list) for number in got]
            print(f"reported: {len(tries)} orders, {sum(tries)} tries")
            for child, count in there.items():
                print(f"child {child}: {count} connections, at most 3")
            print(f"after the worker's end: {left(conn, shop.NAME)} connections")


def stop(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--orders", type=int, default=60, help="how many orders come in")
    parser.add_argument("--children", type=int, default=4, help="how many processes the worker has")
    parser.add_argument("--broker", help="its URL; without one: a local Redis, or else a folder")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    main(options.orders, options.children, options.broker)
