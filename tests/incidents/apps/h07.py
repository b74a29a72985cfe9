"""A chat bot: its framework calls the listeners in an executor, and takes one of the app's own."""

from __future__ import annotations

from concurrent.futures import Executor, Future, ThreadPoolExecutor

from tests.incidents.apps import GUARDED, log
from tests.incidents.apps.django_site import configure

MESSAGES = 10

configure(__name__, CONN_MAX_AGE=60)
urlpatterns: list[object] = []

from django.db import connection, connections  # noqa: E402


class Bot:
    """The framework: acknowledges a message at once, and has a thread do the work."""

    def __init__(self, listener_executor: Executor, completion_handler=None) -> None:
        self.executor = listener_executor
        self.completion_handler = completion_handler

    def receive(self, listener) -> Future[int]:
        return self.executor.submit(self.run, listener)

    def run(self, listener) -> int:
        try:
            return listener()
        finally:
            if self.completion_handler is not None:
                self.completion_handler()


def answer() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def main() -> None:
    if GUARDED:
        import lifeguard

        executor: Executor = lifeguard.ThreadPoolExecutor(1)
        bot = Bot(executor)
    else:
        executor = ThreadPoolExecutor(1)
        bot = Bot(executor, completion_handler=connections.close_all)
    with executor:
        for _ in range(MESSAGES):
            log.write("answered", backend=bot.receive(answer).result())


if __name__ == "__main__":
    main()
