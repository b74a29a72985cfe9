"""A process that stays, and runs the command in it again and again, as a scheduler does.

At the end it prints how often that went well, and what ended it.
"""

from __future__ import annotations

import gc
import json
import os
import time

import django
from django.core.management import call_command
from django.db import connection


def make_collector_rare(how: str) -> None:
    """What is left for the garbage collector stays for a while, or for good."""
    if how == "disabled":
        gc.disable()
    elif how == "frozen":  # as processes do that fork many children
        gc.freeze()
        gc.set_threshold(50_000, 500, 1_000)


def look_at_pool() -> tuple[int, int]:
    stats = connection.pool.get_stats()
    return stats["pool_size"], stats["pool_available"]


def main() -> None:
    django.setup()
    make_collector_rare(os.environ["SEED_GC"])
    batches, error = 0, ""
    for _ in range(int(os.environ["SEED_BATCHES"])):
        try:
            call_command("refresh")
        except Exception as exc:
            error = str(exc)
            break
        batches += 1
    said = {"batches": batches, "error": error, "django": django.get_version()}
    if os.environ.get("SEED_POOL"):
        gc.collect()
        size, available = look_at_pool()
        until = time.monotonic() + 1.0  # a pool takes back in its own time
        while available < size and time.monotonic() < until:
            time.sleep(0.01)
            size, available = look_at_pool()
        said |= {"size": size, "available": available}
        connection.close_pool()
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
