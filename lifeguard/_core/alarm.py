"""A limit for clean-up that blocks.

What can be awaited is cancelled when its time is up. What blocks (a ``close()`` that waits for a
server which is gone, a lock that nobody releases) would block the end of the process for ever, and
whoever waits for that kills it, with all that was still to be closed. So it is interrupted, by
the one thing that interrupts Python code from outside: a signal, in the main thread. In other
threads nothing can be done but to say where it hangs.
"""

from __future__ import annotations

import sys
from _thread import allocate_lock, get_ident

from .observer import logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from types import FrameType, TracebackType

LEAST = 0.1
"""Seconds that every clean-up gets, whatever is left of the budget."""


class limit:
    """Raise TimeoutError in this block, naming *what*, when it takes longer than *seconds*.

    Where SIGALRM is taken, or this is not the main thread, it is logged instead.
    """

    __slots__ = ("_active", "_is_over", "_seconds", "_what")

    def __init__(self, seconds: float, what: object) -> None:
        self._seconds = max(seconds, LEAST)
        self._what = what
        self._active = False
        self._is_over = allocate_lock()

    def __enter__(self) -> None:
        if self._take_alarm():
            return
        from _thread import start_new_thread

        self._is_over.acquire()
        try:
            start_new_thread(_watch, (self._is_over, self._seconds, str(self._what), get_ident()))
        except RuntimeError:  # too late in the life of the interpreter
            self._is_over.release()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._active:
            import signal

            self._active = False  # from here on a late alarm is ignored
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        elif self._is_over.locked():
            self._is_over.release()

    def _take_alarm(self) -> bool:
        import signal

        try:
            if signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL:
                return False
            if signal.getitimer(signal.ITIMER_REAL)[0]:
                return False
            signal.signal(signal.SIGALRM, self._interrupt)
        except (AttributeError, ValueError):  # Windows; not the main thread
            return False
        self._active = True
        # More than once, until it is heard: one that comes in the moment before a thread blocks
        # is noted, but wakes nobody.
        signal.setitimer(signal.ITIMER_REAL, self._seconds, LEAST)
        return True

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self._active:
            import signal

            signal.setitimer(signal.ITIMER_REAL, 0)
            raise TimeoutError(
                f"{self._what} did not end within {self._seconds:.3g} seconds, and was "
                f"interrupted{_at(frame)}"
            )


def _watch(is_over: LockType, seconds: float, what: str, thread: int) -> None:
    if is_over.acquire(timeout=seconds):
        return
    logger("worker").error(
        "%s has not ended within %.3g seconds%s, and cannot be interrupted: "
        "this is not the main thread, or SIGALRM is taken",
        what,
        seconds,
        _at(sys._current_frames().get(thread)),
    )


class last_resort:
    """End the process by force if this block takes longer than *seconds*. Stacks go to stderr.

    For the end of the process, when an exit hangs that not even :class:`limit` interrupts: one
    that swallows the interruption, or hangs in C. The watch is faulthandler's, which does not
    need the interpreter; a ``dump_traceback_later()`` of the app's own ends with it.
    """

    __slots__ = ("_armed", "_seconds")

    def __init__(self, seconds: float) -> None:
        self._seconds = max(seconds, LEAST)
        self._armed = False

    def __enter__(self) -> None:
        import faulthandler

        try:
            faulthandler.dump_traceback_later(self._seconds, exit=True)
            self._armed = True
        except (RuntimeError, ValueError, OSError, AttributeError):
            pass  # there is no stderr to write to: then it waits, as it would have without us

    def __exit__(self, *exc: object) -> None:
        if self._armed:
            import faulthandler

            faulthandler.cancel_dump_traceback_later()


def _at(frame: FrameType | None) -> str:
    return f" at {frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else ""
