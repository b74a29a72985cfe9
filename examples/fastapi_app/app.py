"""Notes, on FastAPI: one pool per worker process, opened once, closed once.

Start it with ``python examples/run.py fastapi_app``, or on a PostgreSQL of your own::

    LIFEGUARD_DSN=postgresql://... uvicorn --app-dir examples/fastapi_app --workers 4 app:app
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel

import lifeguard

DSN = os.environ["LIFEGUARD_DSN"]


@lifeguard.resource
async def db() -> AsyncIterator[AsyncConnectionPool]:
    """The pool of this worker process: at most four connections, whatever the load."""
    async with AsyncConnectionPool(DSN, open=False, min_size=1, max_size=4) as pool:
        witness("open")
        yield pool
    witness("close")


@lifeguard.lifespan
async def lifespan(api: FastAPI) -> AsyncIterator[None]:
    """What each worker does before its first request. The resources are open by then."""
    async with db.get().connection() as conn:
        await conn.execute("SELECT pg_advisory_xact_lock(1)")  # the workers start together
        await conn.execute("CREATE TABLE IF NOT EXISTS note (id serial PRIMARY KEY, text text)")
    yield


async def connection() -> AsyncIterator[AsyncConnection]:
    async with db.get().connection() as conn:
        yield conn


Connection = Annotated[AsyncConnection, Depends(connection)]


class Note(BaseModel):
    text: str


api = FastAPI(title="Notes", lifespan=lifespan)


@api.post("/notes", status_code=201)
async def add(note: Note, conn: Connection) -> dict[str, int]:
    cursor = await conn.execute("INSERT INTO note (text) VALUES (%s) RETURNING id", [note.text])
    row = await cursor.fetchone()
    assert row is not None
    await conn.commit()  # the dependency would do it, but only after the response is sent
    return {"id": row[0]}


@api.get("/notes")
async def latest(conn: Connection) -> list[Note]:
    cursor = await conn.execute("SELECT text FROM note ORDER BY id DESC LIMIT 10")
    return [Note(text=text) async for (text,) in cursor]


@api.get("/notes/aloud")
async def aloud(conn: Connection) -> StreamingResponse:
    """A slow stream. The dependency would hold its connection to the end, so give it back first."""
    notes = await latest(conn)
    await lifeguard.arelease()

    async def words() -> AsyncIterator[str]:
        for note in notes:
            yield f"{note.text}\n"
            await asyncio.sleep(0.1)

    return StreamingResponse(words(), media_type="text/plain")


@api.get("/careless/{number}")
async def careless(number: int, request: Request) -> Note:
    """How not to do it: two ways out of here forget the connection. lifeguard takes it back."""
    conn = await db.get().getconn()
    cursor = await conn.execute("SELECT text, pg_sleep(0.01) FROM note WHERE id = %s", [number])
    row = await cursor.fetchone()
    if row is None:
        raise HTTPException(404, "no such note")
    if await request.is_disconnected():
        raise HTTPException(499, "the client has gone")
    await db.get().putconn(conn)
    return Note(text=row[0])


@api.get("/connections")
async def connections(conn: Connection) -> dict[str, int]:
    """How many connections PostgreSQL has from all workers, as it says itself."""
    cursor = await conn.execute(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE application_name = current_setting('application_name')"
        " AND datname = current_database()"
    )
    row = await cursor.fetchone()
    assert row is not None
    return {"connections": row[0]}


def witness(event: str) -> None:
    """Append one line to the file of EXAMPLE_LOG. A single write loses nothing, whoever dies."""
    path = os.environ.get("EXAMPLE_LOG")
    if path is not None:
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(log, f"{event} {os.getpid()}\n".encode())
        os.close(log)


app = lifeguard.wrap(api)
