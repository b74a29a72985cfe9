"""Consumers, sync and async. Each message says what to do: see the methods that begin with do_."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import defaultdict
from typing import Any

from asgiref.sync import ThreadSensitiveContext, async_to_sync
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer
from django.contrib.auth.models import User
from django.db import connection, transaction

import lifeguard
from tests.support.eventlog import EventLog, thread_mark

log = EventLog.from_env()


class Meeting:
    """Somewhere to wait for others, in the middle of a message."""

    def __init__(self) -> None:
        self.here = threading.Semaphore(0)
        self.barrier: threading.Barrier | None = None
        self.lock = threading.Lock()

    def wait(self, parties: int, timeout: float) -> bool:
        with self.lock:
            if self.barrier is None:
                self.barrier = threading.Barrier(parties)
        try:
            self.barrier.wait(timeout)
        except threading.BrokenBarrierError:
            return False
        return True


meetings: defaultdict[str, Meeting] = defaultdict(Meeting)


def backend() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid: int = cursor.fetchone()[0]
    return pid


def meet(content: dict[str, Any]) -> dict[str, Any]:
    """Wait for the others, with a connection in hand."""
    pid = backend()
    met = meetings[content["at"]].wait(content["parties"], content["timeout"])
    return {"met": met, "backend": pid, "thread": thread_mark()}


def transfer() -> dict[str, Any]:
    """Two statements that belong together."""
    with transaction.atomic():
        first = (backend(), thread_mark())
        User.objects.select_for_update().get(username="ann")
        second = (backend(), thread_mark())
    return {"together": first == second}


class Sync(JsonWebsocketConsumer):
    name = ""

    def receive_json(self, content: dict[str, Any], **kwargs: Any) -> None:
        answer = getattr(self, f"do_{content['do']}")(content)
        if answer is not None:
            self.send_json(answer)

    def do_query(self, content: dict[str, Any]) -> dict[str, Any]:
        self.name = content.get("name", "")
        return {"users": User.objects.count(), "user": self.scope["user"].username}

    def do_meet(self, content: dict[str, Any]) -> dict[str, Any]:
        return meet(content)

    def do_transfer(self, content: dict[str, Any]) -> dict[str, Any]:
        return transfer()

    def do_unit(self, content: dict[str, Any]) -> dict[str, Any]:
        backend()
        lifeguard.callback(lambda: log.write("ended", n=content["n"], on=content["on"]))
        log.write("handled", n=content["n"], on=content["on"])
        return {"n": content["n"]}

    def do_fail(self, content: dict[str, Any]) -> None:
        backend()
        raise RuntimeError("a message that fails")

    def do_join(self, content: dict[str, Any]) -> dict[str, Any]:
        async_to_sync(self.channel_layer.group_add)(content["room"], self.channel_name)
        return {"joined": content["room"]}

    def do_say(self, content: dict[str, Any]) -> None:
        message = {"type": "room.message", "text": content["text"]}
        async_to_sync(self.channel_layer.group_send)(content["room"], message)

    def room_message(self, event: dict[str, Any]) -> None:
        self.send_json({"text": event["text"], "users": User.objects.count()})

    def disconnect(self, code: int) -> None:
        if self.name:
            log.write("left", name=self.name, users=User.objects.count())


class Async(AsyncJsonWebsocketConsumer):
    name = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        alive.add(self)

    async def do_alive(self, content: dict[str, Any]) -> dict[str, Any]:
        return {"alive": len(alive)}

    async def receive_json(self, content: dict[str, Any], **kwargs: Any) -> None:
        answer = await getattr(self, f"do_{content['do']}")(content)
        if answer is not None:
            await self.send_json(answer)

    async def do_query(self, content: dict[str, Any]) -> dict[str, Any]:
        self.name = content.get("name", "")
        users = await User.objects.acount()
        return {"users": users, "user": self.scope["user"].username if "user" in self.scope else ""}

    async def do_meet(self, content: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = await database_sync_to_async(meet)(content)
        return answer

    async def do_transfer(self, content: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = await database_sync_to_async(transfer)()
        return answer

    async def do_unit(self, content: dict[str, Any]) -> dict[str, Any]:
        await User.objects.acount()
        lifeguard.callback(lambda: log.write("ended", n=content["n"], on=content["on"]))
        log.write("handled", n=content["n"], on=content["on"])
        return {"n": content["n"]}

    async def do_fail(self, content: dict[str, Any]) -> None:
        await User.objects.acount()
        raise RuntimeError("a message that fails")

    async def do_join(self, content: dict[str, Any]) -> dict[str, Any]:
        await self.channel_layer.group_add(content["room"], self.channel_name)
        return {"joined": content["room"]}

    async def do_say(self, content: dict[str, Any]) -> None:
        message = {"type": "room.message", "text": content["text"]}
        await self.channel_layer.group_send(content["room"], message)

    async def do_gather(self, content: dict[str, Any]) -> dict[str, Any]:
        """Several calls at once are one after the other, on one connection, as ever."""
        marks = await asyncio.gather(*(database_sync_to_async(thread_mark)() for _ in range(5)))
        return {"threads": len(set(marks))}

    async def do_outlive(self, content: dict[str, Any]) -> dict[str, Any]:
        """Start what goes on when the websocket has closed."""
        self.name = content["name"]
        task = asyncio.create_task(self.outlive(content["name"]))
        running.add(task)
        task.add_done_callback(running.discard)
        return {"started": True}

    async def outlive(self, name: str) -> None:
        await User.objects.acount()
        await gone[name].wait()
        log.write("outlived", name=name, users=await User.objects.acount())

    async def room_message(self, event: dict[str, Any]) -> None:
        await self.send_json({"text": event["text"], "users": await User.objects.acount()})

    async def disconnect(self, code: int) -> None:
        if self.name:
            log.write("left", name=self.name, users=await User.objects.acount())
            gone[self.name].set()


alive: weakref.WeakSet[Async] = weakref.WeakSet()
running: set[asyncio.Task[None]] = set()
gone: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)


class OwnContext(Async):
    """As people do who want consumers to stop waiting for each other."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        async with ThreadSensitiveContext():
            return await super().__call__(scope, receive, send)
