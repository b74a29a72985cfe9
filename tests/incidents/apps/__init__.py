"""The apps of those incidents that need a real server or a process of their own.

Each file is one app. What follows ``if GUARDED`` is all that lifeguard adds to it.
"""

from __future__ import annotations

import os

from tests.support.eventlog import EventLog

GUARDED = os.environ["INCIDENT_SIDE"] == "guarded"
DSN = os.environ["INCIDENT_DSN"]
URL = DSN.replace("postgresql://", "postgresql+psycopg://")
"""The same for SQLAlchemy."""
REDIS = os.environ["INCIDENT_REDIS"]
"""The broker of this side, for the incidents with a task queue."""
PATIENCE = 30 if GUARDED else 3
"""Seconds to wait for a connection: bare until none has come, guarded until one does, however busy
the machine is."""
log = EventLog.from_env()
