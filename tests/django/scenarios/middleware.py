"""A sync and an async middleware, and the plain ASGI middleware around Django."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import parse_qs

from asgiref.sync import sync_to_async
from django.utils.decorators import async_only_middleware
from django.utils.deprecation import MiddlewareMixin

from tests.django.scenarios.views import acount, count
from tests.django.scenarios.witness import current, note


class Raises(MiddlewareMixin):
    """Sync code in an async stack, as most of Django's own middleware is."""

    def process_request(self, request: Any) -> None:
        if request.path == "/middleware-raises":
            count()
            raise RuntimeError("as asked")


@async_only_middleware
def araises(get_response: Any) -> Any:
    async def middleware(request: Any) -> Any:
        if request.path == "/async-middleware-raises":
            await acount()
            raise RuntimeError("as asked")
        return await get_response(request)

    return middleware


class Outer:
    """Knows the request by its id, and asks the database for some, where Django does not see it."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            current.set(parse_qs(scope["query_string"].decode()).get("id", [""])[0])
            if scope["path"] == "/outer":
                await sync_to_async(count)()
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError:
            note("cancelled")
            raise
