"""What the pool adapter does to the current unit for one borrow and its return, without the pool.

The pool's own work is many times as much, and the same with and without lifeguard:
``bench/pool.py`` measures both together on a real database.
"""

from __future__ import annotations

import sys

import lifeguard
from lifeguard.psycopg import _note, _returns

__all__ = ["Lender"]


class Connection:
    """As much of a connection as the adapter looks at."""

    closed = False


class Lender:
    """Stands where a pool's adapter does; everything else is the code that runs in production."""

    def __init__(self, guard: lifeguard.Lifeguard) -> None:
        self.guard = guard
        self.connection = Connection()

    def borrow_and_return(self) -> None:
        connection = self.connection
        unit = self.guard.unit_for_borrow()
        if unit is None:
            raise RuntimeError("borrowed outside a unit: this would measure nothing")
        _note(self, unit, connection, sys._getframe(1))  # type: ignore[arg-type]
        if not _returns(connection._lifeguard, connection):  # type: ignore[attr-defined]
            raise RuntimeError("the return was refused")
