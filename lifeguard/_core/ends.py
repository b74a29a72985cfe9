"""How a process ends, and how to be called when it does.

No single hook is enough (measured, see docs/servers/index.md): ``atexit`` does not run in
multiprocessing children, nor in granian's workers on Python 3.11;
``multiprocessing.util.Finalize`` runs there; a SIGTERM that nobody handles runs neither. So all
of them are registered, in the process that opened something, and whichever comes first does the
work: the others find nothing to do.
"""

from __future__ import annotations

import os
import sys
import weakref

from . import fork

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, Protocol

    class Endable(Protocol):
        def end(self) -> None: ...

        def is_closing(self) -> bool: ...


_open: list[weakref.ref[Endable]] = []  # in the order in which they were opened
_pid = 0  # the process in which the hooks are registered
_ending = 0  # the process that is in the middle of run()


def register(lifetime: Endable, *, last: bool = False) -> None:
    """``lifetime.end()`` is called at the end of this process, unless it is gone by then.

    What was registered last ends first. With *last* it ends after all others: a worker ends its
    units before anybody looks after single pools.
    """
    global _pid
    pid = os.getpid()
    if _pid != pid:
        _pid = pid
        _open.clear()  # those of the parent are not ours
        _hook(pid)
    forget(lifetime)
    _open.insert(0 if last else len(_open), weakref.ref(lifetime))


def forget(lifetime: Endable) -> None:
    global _deferred
    _open[:] = [ref for ref in _open if ref() is not None and ref() is not lifetime]
    if _deferred and not _is_closing():
        _deferred = False
        import signal

        os.kill(os.getpid(), signal.SIGTERM)


def _is_closing() -> bool:
    return any(lifetime.is_closing() for ref in list(_open) if (lifetime := ref()) is not None)


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
    global _ending
    if pid != os.getpid() or pid != _pid:  # a child that has opened nothing has its parent's list
        return
    _ending = pid
    while _open:
        lifetime = _open.pop()()
        if lifetime is not None:
            lifetime.end()
    _ending = 0


# -- SIGTERM --------------------------------------------------------------------------------------

_sigterm_pid = 0
_takers = 0


def take_sigterm() -> bool:
    """Turn SIGTERM into SystemExit, so that ``finally`` and ``atexit`` run; then die of it.

    Only where nobody else has taken it (the disposition is SIG_DFL), and only from the main
    thread, where Python lets handlers be set: that is, while the app is imported. A server that
    installs its own handler afterwards replaces this one. A child that inherits it dies of the
    signal, as it would have. True if it is taken: :func:`leave_sigterm` gives it back.
    """
    global _sigterm_pid, _takers
    import threading

    if threading.current_thread() is not threading.main_thread():
        return False
    import signal

    if _is_ours() and _sigterm_pid == os.getpid():
        _takers += 1
        return True
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return False
    try:
        signal.signal(signal.SIGTERM, _on_sigterm)
    except ValueError:  # the main thread of a subinterpreter
        return False
    _sigterm_pid = os.getpid()
    _takers = 1
    _register(_die_of_sigterm, (), 0)  # registered early, so it runs late
    return True


def leave_sigterm() -> None:
    """One taker less. The last one leaves the signal as it was, unless it has come already."""
    global _takers
    import signal

    _takers -= 1
    if _takers == 0 and not _terminated and _sigterm_pid == os.getpid() and _is_ours():
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        except ValueError:  # not in the main thread any more: it stays
            _takers = 1


def _is_ours() -> bool:
    import signal

    return signal.getsignal(signal.SIGTERM) is _on_sigterm


_terminated = False
_deferred = False  # a SIGTERM has come while something closes: it is raised anew after that


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    global _terminated, _deferred
    import signal

    again = _terminated
    stranger = os.getpid() not in (_sigterm_pid, _pid)
    if (again or stranger) and _is_ours():  # else somebody's handler calls this one: it stays
        signal.signal(signum, signal.SIG_DFL)
    if stranger:  # a child with nothing of ours: as if we were not here
        os.kill(os.getpid(), signum)
        return
    if again:
        if _pid == os.getpid() and (_open or _ending == _pid):
            hurry()  # it is on its way to its end (hypercorn's master sends two at once)
        else:
            os.kill(os.getpid(), signum)  # now the default action, as of a third one
        return
    if not _deferred and _is_closing():
        # SystemExit would go through the clean-up that runs, or through the loop that runs it
        # (hypercorn's master sends SIGTERM to workers that are ending by themselves).
        _deferred = True
        hurry()
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


# -- the second signal ----------------------------------------------------------------------------

_waits: list[Callable[[], object]] = []  # what a signal cuts short
_replaced: dict[int, Any] = {}  # handlers of others, called after that


@fork.in_child
def _nothing_waits_here() -> None:
    """A child may be forked while its parent ends. A signal of its own is its first."""
    global _terminated, _deferred
    _terminated = _deferred = False
    _waits.clear()


class cut_short_by_signals:
    """While this block waits, a SIGTERM or SIGINT calls *hurry*, and then its own handler.

    Whoever sends a second one wants the end now: not without clean-up, but without patience. Only
    in the main thread, where Python lets handlers be set, and only beside a handler: a signal
    that nobody handles goes on to end the process on the spot.
    """

    __slots__ = ("_hurry",)

    def __init__(self, hurry: Callable[[], object]) -> None:
        self._hurry = hurry

    def __enter__(self) -> None:
        _waits.append(self._hurry)
        if is_late():
            self._hurry()
        if _replaced:
            return
        import signal

        for number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.getsignal(number)
            if not callable(handler) or handler is _on_sigterm:
                continue
            try:
                signal.signal(number, _on_second)
            except ValueError:  # not in the main thread
                return
            _replaced[number] = handler

    def __exit__(self, *exc: object) -> None:
        _waits.remove(self._hurry)
        if _waits or not _replaced:
            return
        import signal

        for number in list(_replaced):
            if signal.getsignal(number) is _on_second:
                try:
                    signal.signal(number, _replaced[number])
                except ValueError:
                    return
            del _replaced[number]


def _on_second(signum: int, frame: FrameType | None) -> None:
    _hurry()
    handler = _replaced.get(signum)
    if handler is not None:
        handler(signum, frame)


_late_pid = 0


def hurry() -> None:
    """Nothing in this process waits for units any more: whoever ends it will not wait either.

    For hosts that know when their server kills what is still there.
    """
    global _late_pid
    _late_pid = os.getpid()
    _hurry()


def is_late() -> bool:
    return _late_pid == os.getpid()


def _hurry() -> None:
    for hurry in _waits.copy():  # threads leave it meanwhile
        hurry()
