"""What a forked child has to know: that it is one.

A child holds copies of the parent's sockets. Using or closing one of them talks on the parent's
connection. So the child *discards* what it inherited: it keeps a reference, so that no destructor
runs, and sends nothing. ``os.register_at_fork`` tells it, not the documentation: nobody knows
about forks before having debugged one (psycopg2#1205).
"""

from __future__ import annotations

import os
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Inheritable(Protocol):
        """Whoever owns something that a forked child must not touch."""

        def after_fork(self) -> None: ...


_owners: weakref.WeakSet[Inheritable] = weakref.WeakSet()
_kept: list[object] = []
_registered = False


def watch(owner: Inheritable) -> None:
    """From now on a forked child calls ``owner.after_fork()`` before anything else runs in it."""
    global _registered
    if not _registered:
        _registered = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=_before, after_in_child=_after_in_child)
    _owners.add(owner)


def keep(inherited: object) -> None:
    """Hold on to *inherited* for the life of this process, so that its destructor never runs."""
    _kept.append(inherited)


_hooks: list[Callable[[], None]] = []


def in_child(hook: Callable[[], None]) -> Callable[[], None]:
    """Run *hook* in every forked child, before the owners: for locks made at import."""
    _hooks.append(hook)
    return hook


def _before() -> None:
    """Give every owner that cares a chance to be in a state that can be forked."""
    for owner in list(_owners):
        prepare = getattr(owner, "before_fork", None)
        if prepare is not None:
            prepare()


def _after_in_child() -> None:
    for hook in _hooks:
        hook()
    for owner in list(_owners):
        try:
            owner.after_fork()
        except Exception:  # the others have to be told all the same
            import logging

            logging.getLogger("lifeguard.worker").exception("%r could not forget", owner)
