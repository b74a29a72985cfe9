"""Tasks that are arranged wrongly, beside one that is right."""

from __future__ import annotations

from collections.abc import Iterator

import lifeguard
from tests.celery.apps import celery_app, log

app = celery_app("mistakes")


@lifeguard.resource
def thing() -> Iterator[int]:
    log.write("opened")
    yield 5
    log.write("closed")


@app.task(name="right")
@lifeguard.task
def right() -> int:
    return thing.get()


@app.task(name="forgotten")
@lifeguard.task
async def forgotten() -> int:
    return 5
