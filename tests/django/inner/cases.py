"""Tests as Django's documentation shows them, for Django's own runner and for pytest."""

from __future__ import annotations

import urllib.request
from typing import Any

from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test import LiveServerTestCase, TestCase, TransactionTestCase

import lifeguard
from tests.django.inner import app


@lifeguard.task
def count() -> int:
    number: int = User.objects.count()
    return number


@lifeguard.task
async def acount() -> int:
    number: int = await User.objects.acount()
    return number


class InATransaction(TestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        User.objects.create(username="ann")

    def test_a_view(self) -> None:
        assert self.client.get("/users").content == b"1"
        assert self.client.get("/users").content == b"1"

    def test_an_async_view(self) -> None:
        assert self.client.get("/ausers").content == b"1 1 1"

    async def test_an_async_client(self) -> None:
        response = await self.async_client.get("/ausers")
        assert response.content == b"1 1 1"
        response = await self.async_client.get("/users")
        assert response.content == b"1"
        assert await User.objects.acount() == 1

    async def test_an_async_stream(self) -> None:
        response: Any = await self.async_client.get("/stream")
        assert [chunk async for chunk in response] == [b"ann\n"]

    def test_a_view_that_writes(self) -> None:
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            self.client.get("/join?name=bob")
        assert len(callbacks) == 1
        assert app.committed.pop() == "bob"
        assert User.objects.count() == 2

    def test_a_view_that_fails(self) -> None:
        with self.assertRaisesMessage(RuntimeError, "1 users"):
            self.client.get("/fail")
        self.client.raise_request_exception = False
        assert self.client.get("/fail").status_code == 500
        assert User.objects.count() == 1

    def test_units_and_tasks(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            before = cursor.fetchone()
        with lifeguard.unit():
            User.objects.create(username="bob")
            assert count() == 2
        with transaction.atomic(), lifeguard.unit():
            User.objects.create(username="cleo")
        assert count() == 3
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            assert cursor.fetchone() == before

    async def test_an_async_task(self) -> None:
        assert await acount() == 1
        assert await User.objects.acount() == 1

    def test_what_the_last_test_did_is_gone(self) -> None:
        assert User.objects.count() == 1
        assert connection.in_atomic_block

    async def test_a_consumer(self) -> None:
        communicator = WebsocketCommunicator(app.application, "/async")
        connected, _ = await communicator.connect()
        assert connected
        for _ in range(2):
            await communicator.send_json_to({})
            assert await communicator.receive_json_from() == {"users": [1, 1]}
        assert await User.objects.acount() == 1


class WithCommits(TransactionTestCase):
    def setUp(self) -> None:
        User.objects.create(username="ann")

    def test_a_view(self) -> None:
        assert self.client.get("/users").content == b"1"
        assert self.client.get("/ausers").content == b"1 1 1"

    def test_a_view_that_writes(self) -> None:
        self.client.get("/join?name=bob")
        assert app.committed.pop() == "bob"
        assert User.objects.count() == 2

    async def test_async(self) -> None:
        response = await self.async_client.get("/ausers")
        assert response.content == b"1 1 1"
        assert await sync_to_async(User.objects.count)() == 1
        assert await acount() == 1

    async def test_a_consumer(self) -> None:
        for path, users in (("/sync", 1), ("/async", [1, 1])):
            communicator = WebsocketCommunicator(app.application, path)
            await communicator.connect()
            await communicator.send_json_to({})
            assert await communicator.receive_json_from() == {"users": users}
            await communicator.disconnect()


class WithAServer(LiveServerTestCase):
    def test_it_answers(self) -> None:
        User.objects.create(username="ann")
        for name, body in (("users", b"1"), ("ausers", b"1 1 1")):
            with urllib.request.urlopen(f"{self.live_server_url}/{name}") as response:
                assert response.read() == body
        with urllib.request.urlopen(f"{self.live_server_url}/join?name=bob"):
            assert User.objects.count() == 2
