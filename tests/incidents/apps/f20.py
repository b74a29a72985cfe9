"""A pool of processes whose initializer begins with fresh connections, as one is told to."""

from __future__ import annotations

import multiprocessing

from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from tests.incidents.apps import GUARDED, URL, log

engine = create_engine(URL, pool_size=1)


def run_in_process(number: int) -> int:
    with engine.connect() as conn:
        return conn.scalar(text("SELECT CAST(:number AS int)"), {"number": number})


def main() -> None:
    log.write("before", answer=run_in_process(1))
    with multiprocessing.get_context("fork").Pool(2, initializer=engine.dispose) as processes:
        log.write("processes", answers=processes.map(run_in_process, range(4)))
        processes.close()
        processes.join()
    try:
        log.write("after", answer=run_in_process(2))
    except OperationalError as exc:
        log.write("after", error=str(exc))


if __name__ == "__main__":
    if GUARDED:
        import lifeguard

        with lifeguard.worker(resources=[engine]):
            main()
    else:
        main()
        engine.dispose()
