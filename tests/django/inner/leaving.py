"""Tests whose threads leave connections to the test database."""

from __future__ import annotations

import gc
import threading

from django.contrib.auth.models import User
from django.test import TransactionTestCase

import lifeguard

gc.disable()  # of a quiet process, practically


class Threads(TransactionTestCase):
    def test_threads(self) -> None:
        """They see what is committed, each on a connection of its own."""
        User.objects.create(username="ann")
        with lifeguard.ThreadPoolExecutor(4) as executor:
            results = [executor.submit(User.objects.count).result() for _ in range(8)]
        assert results == [1] * 8
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(User.objects.count()))
        thread.start()
        thread.join()
        assert seen == [1]
