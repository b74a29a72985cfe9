"""A child that disposes of what it inherited, as everybody is told to."""

from __future__ import annotations

import os

from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from tests.incidents.apps import GUARDED, URL, log

engine = create_engine(URL, pool_size=1)


def use() -> None:
    try:
        with engine.connect() as conn:
            log.write("answered", backend=conn.scalar(text("SELECT pg_backend_pid()")))
    except OperationalError as exc:
        log.write("broken", error=str(exc))


def main() -> None:
    use()
    child = os.fork()
    if child == 0:  # what a post_fork hook does that wants to begin clean
        engine.dispose()
        os._exit(0)
    os.waitpid(child, 0)
    use()


if __name__ == "__main__":
    if GUARDED:
        import lifeguard

        with lifeguard.worker(resources=[engine]):
            main()
    else:
        main()
        engine.dispose()
