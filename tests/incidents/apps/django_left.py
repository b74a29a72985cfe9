"""How many connections a Django site has, seen from inside of its process by PostgreSQL's eyes."""

from __future__ import annotations

import time

import psycopg

from tests.incidents.apps import DSN, GUARDED
from tests.incidents.apps.django_site import NAME

QUERY = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"


def left() -> int:
    """How many are left, once none is, or after a while."""
    deadline = time.monotonic() + (40 if GUARDED else 1)
    with psycopg.connect(DSN, autocommit=True) as conn:
        while True:
            row = conn.execute(QUERY, [NAME]).fetchone()
            assert row is not None
            number: int = row[0]
            if number == 0 or time.monotonic() > deadline:
                return number
            time.sleep(0.02)
