"""ansible/awx#16558: uWSGI's harakiri kills the worker, and not the worker's query.

94 abandoned queries were seen at once where a dozen were expected, each taking its share of the
server from those that somebody still waits for. The remedy there is a ``statement_timeout`` that is
derived from the harakiri. (It had no effect where uWSGI names its options by another type of key,
ctrliq/ascender#642.)
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from lifeguard.testing import Postgres
from tests.incidents.queries import abandon_query, is_running, terminate, wait_until_ended
from tests.incidents.serving import Sides


def test_incident_K24(sides: Sides, pg: Postgres) -> None:
    """Bare, the query is still running when its worker has been killed.

    Guarded, PostgreSQL ends it: lifeguard asks it to look at its clients twice a second.
    """
    bare, guarded = sides.serve(
        "uwsgi", "k24", "--harakiri", "4", "--lazy-apps", "--enable-threads"
    )
    with ThreadPoolExecutor() as clients:
        abandoned = list(clients.map(abandon_query, (bare, guarded)))
    try:
        assert wait_until_ended(pg, abandoned[1])
        assert is_running(pg, abandoned[0])
    finally:
        terminate(pg, abandoned[0])
