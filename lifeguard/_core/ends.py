"""How a process ends, and how to be called when it does.

No single hook is enough (measured, see docs/servers.md): ``atexit`` does not run in
multiprocessing children, nor in granian's workers on Python 3.11;
``multiprocessing.util.Finalize`` runs there; a SIGTERM that nobody handles runs neither. So all
of them are registered, in the process that opened something, and whichever comes first does the
work: the others find nothing to do.
"""

from __future__ import annotations

import os
import sys
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Protocol

    class Endable(Protocol):
        def end(self) -> None: ...


_open: list[weakref.ref[Endable]] = []  # in the order in which they were opened
_pid = 0  # the process in which the hooks are registered


def register(lifetime: Endable) -> None:
    """``lifetime.end()`` is called at the end of this process, unless it is gone by then.

    What was registered last ends first.
    """
    global _pid
    pid = os.getpid()
    if _pid != pid:
        _pid = pid
        _open.clear()  # those of the parent are not ours
        _hook(pid)
    forget(lifetime)
    _open.append(weakref.ref(lifetime))


def forget(lifetime: Endable) -> None:
    _open[:] = [ref for ref in _open if ref() is not None and ref() is not lifetime]


def _hook(pid: int) -> None:
    _register(run, (pid,), 100)


def _register(func: Callable[..., None], args: tuple[object, ...], priority: int) -> None:
    import atexit

    atexit.register(func, *args)
    # Only a process that came from these modules ends through them, and then they are imported.
    for name in ("multiprocessing.util", "billiard.util"):
        module = sys.modules.get(name)
        if module is not None:
            module.Finalize(None, func, args=args, exitpriority=priority)


def run(pid: int) -> None:
    """End what is open, if this is still the process that opened it."""
    if pid != os.getpid():
        return
    while _open:
        lifetime = _open.pop()()
        if lifetime is not None:
            lifetime.end()


# -- SIGTERM --------------------------------------------------------------------------------------

_sigterm_pid = 0


def take_sigterm() -> bool:
    """Turn SIGTERM into SystemExit, so that ``finally`` and ``atexit`` run; then die of it.

    Only where nobody else has taken it (the disposition is SIG_DFL), and only from the main
    thread, where Python lets handlers be set: that is, while the app is imported. A server that
    installs its own handler afterwards replaces this one. A child that inherits it dies of the
    signal, as it would have.
    """
    global _sigterm_pid
    import threading

    if threading.current_thread() is not threading.main_thread():
        return False
    import signal

    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return False
    try:
        signal.signal(signal.SIGTERM, _on_sigterm)
    except ValueError:  # the main thread of a subinterpreter
        return False
    _sigterm_pid = os.getpid()
    _register(_die_of_sigterm, (), 0)  # registered early, so it runs late
    return True


_terminated = False


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    global _terminated
    import signal

    signal.signal(signum, signal.SIG_DFL)  # a second one ends the process at once
    if os.getpid() != _sigterm_pid and _pid != os.getpid():
        os.kill(os.getpid(), signum)  # a child with nothing of ours: as if we were not here
        return
    _terminated = True
    raise SystemExit(128 + signum)


def _die_of_sigterm() -> None:
    """End as everybody expects of a process that was told to: by the signal, not by a status.

    systemd, for one, takes the status 143 for a failure.
    """
    if not _terminated or os.getpid() != _sigterm_pid:
        return
    import signal

    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed, or there is none
            pass
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
