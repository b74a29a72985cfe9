"""An import of many files, by a pool of processes."""

from __future__ import annotations

import multiprocessing
import os

from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

from tests.incidents.apps import GUARDED, URL, log

engine = create_engine(URL, pool_size=1)
Session = sessionmaker(engine)
fork = multiprocessing.get_context("fork")
all_are_there = fork.Barrier(2)
turn = fork.Lock()


def preprocess(file: str) -> None:
    all_are_there.wait(40)
    with turn:
        try:
            with Session() as session:
                session.scalar(text("SELECT CAST(:file AS text)"), {"file": file})
            log.write("imported", worker=os.getpid())
        except Exception as exc:
            log.write("failed", error=str(exc))


def main() -> None:
    with Session() as session:
        session.scalar(text("SELECT 'which files are there already?'"))
    with fork.Pool(2) as processes:
        processes.map(preprocess, ["april.nc", "may.nc"], chunksize=1)
        processes.close()
        processes.join()


if __name__ == "__main__":
    if GUARDED:
        import lifeguard

        with lifeguard.worker(resources=[engine]):
            main()
    else:
        main()
        engine.dispose()
