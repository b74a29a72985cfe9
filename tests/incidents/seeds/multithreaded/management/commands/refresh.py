"""What is run again and again: a few threads ask the database, and are over."""

from __future__ import annotations

import os

from django.core.management.base import BaseCommand
from django.db import connection

THREADS = 4


def refresh(number: int) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s::int", [number])
        (answer,) = cursor.fetchone()
    return int(answer)


class Command(BaseCommand):
    def handle(self, *args: object, **options: object) -> None:
        if os.environ.get("SEED_EXECUTOR") == "lifeguard":
            from lifeguard import ThreadPoolExecutor
        else:
            from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(THREADS) as executor:
            # One job for each thread, however quick they are: each needs a connection of its own.
            jobs = [executor.submit(refresh, number) for number in range(THREADS)]
        if [job.result() for job in jobs] != [*range(THREADS)]:
            raise AssertionError("somebody has the answer to another's question")
