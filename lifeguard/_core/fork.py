"""What a forked child has to know: that it is one.

A child holds copies of the parent's sockets. Using or closing one of them talks on the parent's
connection. So the child *discards* what it inherited: it keeps a reference, so that no destructor
runs, and sends nothing. ``os.register_at_fork`` tells it, not the documentation: nobody knows
about forks before having debugged one (psycopg2#1205).
"""

from __future__ import annotations

import os
import weakref
from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Inheritable(Protocol):
        """Whoever owns something that a forked child must not touch."""

        def after_fork(self) -> None: ...


_owners: dict[int, weakref.ref[Inheritable]] = {}  # not a WeakSet: threads add while one forks
_kept: list[object] = []
_registered = False
_pid = os.getpid()
_noticing = allocate_lock()


def watch(owner: Inheritable) -> None:
    """From now on a forked child calls ``owner.after_fork()`` before anything else runs in it."""
    global _registered
    notice()  # it is the first here: who was watched in the parent has to hear of the fork before
    if not _registered:
        _registered = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=_before, after_in_child=_after_in_child)
    key = id(owner)
    _owners[key] = weakref.ref(owner, lambda ref: _forget(key, ref))


def _forget(key: int, ref: weakref.ref[Inheritable]) -> None:
    if _owners.get(key) is ref:  # else the id is another's by now
        del _owners[key]


def _watched() -> list[Inheritable]:
    owners = [ref() for ref in list(_owners.values())]
    return [owner for owner in owners if owner is not None]


def keep(inherited: object) -> None:
    """Hold on to *inherited* for the life of this process, so that its destructor never runs."""
    _kept.append(inherited)


_hooks: list[Callable[[], None]] = []


def in_child(hook: Callable[[], None]) -> Callable[[], None]:
    """Run *hook* in every forked child, before the owners: for locks made at import."""
    _hooks.append(hook)
    return hook


def notice() -> None:
    """Tell the owners, if this is a forked child that Python does not know to be one.

    A server that is written in C forks without a word, unless told otherwise (docs/servers).
    Called where a worker is opened, which is before the first unit.
    """
    if _pid != os.getpid():
        with _noticing:  # threads that come together go on together
            if _pid != os.getpid():
                _after_in_child()


def _before() -> None:
    """Give every owner that cares a chance to be in a state that can be forked."""
    for owner in _watched():
        prepare = getattr(owner, "before_fork", None)
        if prepare is not None:
            prepare()


def _after_in_child() -> None:
    global _pid
    for hook in _hooks:
        hook()
    for owner in _watched():
        try:
            owner.after_fork()
        except Exception as exc:  # the others have to be told all the same
            _failed.append((owner, exc))
    _pid = os.getpid()


_failed: list[tuple[Inheritable, Exception]] = []


def say_failed() -> None:
    """Log what went wrong in the fork. Not in it: a lock of logging's may have been held there."""
    while _failed:
        import logging

        owner, exc = _failed.pop(0)
        logging.getLogger("lifeguard.worker").error(
            "%r could not forget what it had before the fork: do not use it in this process, %d",
            owner,
            os.getpid(),
            exc_info=exc,
        )
