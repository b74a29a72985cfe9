"""Questions whose answers are known, and the backend that answered."""

from __future__ import annotations

from typing import Any

QUESTION = "SELECT %s::int, pg_backend_pid()"


def ask(pool: Any, number: int) -> tuple[int, int]:
    with pool.connection() as conn:
        row = conn.execute(QUESTION, [number]).fetchone()
    return row[0], row[1]


async def aask(pool: Any, number: int) -> tuple[int, int]:
    async with pool.connection() as conn:
        row = await (await conn.execute(QUESTION, [number])).fetchone()
    return row[0], row[1]
