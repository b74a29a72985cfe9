"""Tests as pytest-django's documentation shows them."""

from __future__ import annotations

import urllib.request
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import User

from tests.django.inner import app
from tests.django.inner.cases import count


def test_db(db: None, client: Any) -> None:
    User.objects.create(username="ann")
    assert client.get("/users").content == b"1"
    assert client.get("/ausers").content == b"1 1 1"
    assert count() == 1


def test_db_is_empty_again(db: None) -> None:
    assert count() == 0


def test_a_database_without_asking_for_it() -> None:
    with pytest.raises(RuntimeError, match="Database access not allowed"):
        count()


@pytest.mark.django_db
def test_marked(client: Any) -> None:
    client.get("/join?name=bob")
    assert User.objects.count() == 1


def test_transactional_db(transactional_db: None, client: Any) -> None:
    client.get("/join?name=bob")
    assert app.committed.pop() == "bob"
    assert count() == 1


def test_on_commit(
    db: None, client: Any, django_capture_on_commit_callbacks: Any, django_assert_num_queries: Any
) -> None:
    with django_capture_on_commit_callbacks(execute=True) as callbacks:
        client.get("/join?name=bob")
    assert len(callbacks) == 1
    with django_assert_num_queries(1):
        count()


def test_async_client(transactional_db: None, async_client: Any) -> None:
    User.objects.create(username="ann")

    async def main() -> bytes:
        response = await async_client.get("/ausers")
        content: bytes = response.content
        return content

    assert async_to_sync(main)() == b"1 1 1"


def test_live_server(live_server: Any) -> None:
    User.objects.create(username="ann")
    for name, body in (("users", b"1"), ("ausers", b"1 1 1")):
        with urllib.request.urlopen(f"{live_server.url}/{name}") as response:
            assert response.read() == body


def test_communicator_in_a_transaction(db: None) -> None:
    """The consumer sees what the test has not committed. (An async one: Channels closes the
    connection of the test behind a sync one now and then, see django/channels#2118.)"""
    User.objects.create(username="ann")

    async def main() -> None:
        communicator = WebsocketCommunicator(app.application, "/async")
        await communicator.connect()
        for _ in range(2):
            await communicator.send_json_to({})
            assert await communicator.receive_json_from() == {"users": [1, 1]}

    async_to_sync(main)()
    assert count() == 1


def test_communicator_with_a_consumer_alone(transactional_db: None) -> None:
    async def main() -> None:
        communicator = WebsocketCommunicator(app.consumer, "/")
        await communicator.connect()
        await communicator.send_json_to({})
        assert await communicator.receive_json_from() == {"users": [0, 0]}
        await communicator.disconnect()

    async_to_sync(main)()


@pytest.mark.parametrize(("path", "users"), [("/sync", 1), ("/async", [1, 1])])
def test_communicator(transactional_db: None, path: str, users: Any) -> None:
    User.objects.create(username="ann")

    async def main() -> None:
        communicator = WebsocketCommunicator(app.application, path)
        connected, _ = await communicator.connect()
        assert connected
        for _ in range(2):
            await communicator.send_json_to({})
            assert await communicator.receive_json_from() == {"users": users}
        await communicator.disconnect()

    async_to_sync(main)()
