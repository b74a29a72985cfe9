"""An analysis that forks in the middle of a session, as its scheduler does."""

from __future__ import annotations

import gc
import os

from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from tests.incidents.apps import GUARDED, URL, log

engine = create_engine(URL, pool_size=2)


def analyse() -> None:
    session = Session(engine)
    session.execute(text("CREATE TEMPORARY TABLE findings (n int)"))
    session.commit()
    session.execute(text("INSERT INTO findings VALUES (1)"))
    child = os.fork()
    if child == 0:
        del session
        gc.collect()  # sooner or later
        os._exit(0)
    os.waitpid(child, 0)
    session.commit()
    log.write("committed", findings=session.scalar(text("SELECT count(*) FROM findings")))
    session.close()


if __name__ == "__main__":
    if GUARDED:
        import lifeguard

        with lifeguard.worker(resources=[engine]):
            analyse()
    else:
        analyse()
        engine.dispose()
