"""What one borrow is to a unit: an exit noted on it, and taken off again at the return.

These are the statements of ``lifeguard/psycopg.py``'s ``getconn`` and ``putconn`` that deal with
the unit. What the pool's adapter does besides (the overridden methods, who called, which task)
is measured by ``bench/pool.py``, together with the pool and the database it belongs to.
"""

from __future__ import annotations

from typing import Any

import lifeguard
from lifeguard._core.lifetime import OPEN
from lifeguard._core.unit import Borrow

__all__ = ["borrow_and_return"]


class _Lender:
    """As much of a pool's adapter as a unit looks at."""

    name = "bench"
    awaits = False

    def take_back(self, thing: Any, awaits: bool) -> None:
        raise RuntimeError("it was given back")


_borrow = Borrow(_Lender(), object())
_current = lifeguard._default.current.get


def borrow_and_return() -> None:
    borrow = _borrow
    unit = _current()
    if unit is not None and unit.state is OPEN:
        borrow.unit = unit
        unit.append(borrow)
    unit, borrow.unit = borrow.unit, None
    if unit is not None:
        unit.remove(borrow)
