"""gunicorn: workers that get to close before the master kills them.

Most ends of a gunicorn worker run all of the exits, and need nothing from here. Four do not (each
measured, see docs/servers/gunicorn.md):

* a request that is still running when ``--graceful-timeout`` is over: the worker is killed,
  whatever its class;
* SIGINT or SIGQUIT to the master, with uvicorn-worker: the worker takes no notice, and is killed
  after the graceful timeout (gunicorn#2604);
* a worker that hangs (``--timeout``), with uvicorn-worker and ``-k asgi``: the SIGABRT that warns
  it ends the process, or waits for the loop that hangs.

So the worker starts a watch when it is told to leave. A little before the master loses patience,
the watch sends it what the master sends for a quick stop (SIGQUIT), which ends its requests; what
does not end by that is closed from outside.

This module is a configuration file of its own (``gunicorn -c python:lifeguard.gunicorn``), so its
public names are settings of gunicorn's, or none of them.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from _thread import allocate_lock, start_new_thread

from ._core import ends as _ends
from ._core.observer import logger as _logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

__all__ = ["post_worker_init"]


def post_worker_init(worker: Any) -> None:
    """gunicorn's hook of this name: let *worker* close in time, whatever its class.

    Two ways to use it: the whole module as the configuration, or the hook in one's own::

        gunicorn -c python:lifeguard.gunicorn shop:app

        # gunicorn.conf.py
        from lifeguard.gunicorn import post_worker_init

    Beside a hook of one's own, call it first::

        # gunicorn.conf.py
        import lifeguard.gunicorn

        def post_worker_init(worker):
            lifeguard.gunicorn.post_worker_init(worker)
            ...

    A request that runs into the limit ends by ``SystemExit`` (sync), by cancellation (ASGI), or
    with its connections closed (gthread), up to a second before the master would have killed it.
    ``worker_int`` and ``worker_abort`` are called where gunicorn calls them.
    """
    _End(worker).prepare()


_QUICK = 0.1
"""Seconds that requests get to end in a quick stop, as gunicorn's own workers give them."""
_QUICK_STOP = 2.0
"""What gunicorn's master gives a worker for a quick stop that follows a graceful one."""
_HANGS = 0.25
"""The master kills a hanging worker within a second after the warning."""


class _End:
    """The end of one worker: what it is told, and how long it has got."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.pid = os.getpid()
        self.patience = float(worker.cfg.graceful_timeout)
        self.reserve = min(1.0, max(0.5, self.patience / 4), self.patience)
        self.deadline = float("inf")
        self.loop: Any = getattr(worker, "loop", None)
        self.told = False
        self.hangs = False
        self.closing = allocate_lock()  # held by the watch while it closes

    # -- what gunicorn's workers make of signals -----------------------------------------------

    def prepare(self) -> None:
        import atexit

        atexit.register(self._wait_for_watch)
        config = getattr(self.worker, "config", None)
        if hasattr(config, "timeout_graceful_shutdown"):
            self._prepare_uvicorn(config)
            return
        if self.loop is not None:  # -k asgi: its own handler would wait for the loop
            self.loop.add_signal_handler(signal.SIGABRT, _nothing)  # uvloop removes none
            signal.signal(signal.SIGABRT, self._interrupt)
        self._listen()

    def _prepare_uvicorn(self, config: Any) -> None:
        # It waits for requests for ever, unless told otherwise; and when they are cancelled, it
        # still shuts the app down in order.
        least = max(0.0, self.patience - self.reserve - 0.2)
        set_by_user = config.timeout_graceful_shutdown
        config.timeout_graceful_shutdown = least if set_by_user is None else min(least, set_by_user)

        def quit_(signum: int, frame: FrameType | None) -> None:
            config.timeout_graceful_shutdown = _QUICK
            os.kill(self.pid, signal.SIGTERM)  # which the server knows, unlike SIGQUIT

        self.worker.handle_exit = quit_  # what it installs for SIGQUIT
        signal.signal(signal.SIGABRT, self._interrupt)

        # The server takes the signals when it starts, so the watch comes after it: with the first
        # sign of life that it gives.
        notify = self.worker.notify

        def first_notify() -> None:
            import asyncio

            self.worker.notify = notify
            self.loop = asyncio.get_running_loop()
            self._listen()
            notify()

        self.worker.notify = first_notify

    def _listen(self) -> None:
        """Hear the signals before the worker does. It gets them all the same."""
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT, signal.SIGABRT):
            theirs = signal.getsignal(number)
            if not callable(theirs) or theirs == self._interrupt:
                continue

            def heard(signum: int, frame: FrameType | None, theirs: Any = theirs) -> None:
                if os.getpid() == self.pid:  # not in a child that a request forked
                    self._be_told(signum)
                theirs(signum, frame)

            signal.signal(number, heard)
            if number == signal.SIGTERM:
                signal.siginterrupt(number, False)  # as gunicorn has it

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        """The loop hangs, and this is the one thing that runs: cancel the task it hangs in."""
        if os.getpid() != self.pid:
            os.abort()  # a child that a request forked: as if we were not here
        if not self.hangs:
            self._be_told(signum)
            self.worker.cfg.worker_abort(self.worker)
        if "asyncio" in sys.modules:
            import asyncio

            if asyncio._get_running_loop() and asyncio.current_task():
                raise asyncio.CancelledError("gunicorn is about to kill this worker: it hangs")

    # -- the watch -----------------------------------------------------------------------------

    def _be_told(self, signum: int) -> None:
        if signum == signal.SIGABRT:
            self.hangs = True
            self._leave_within(_HANGS)
            return
        seconds = self.patience
        if self.told and signum != signal.SIGTERM:
            seconds = min(seconds, _QUICK_STOP)
        self._leave_within(seconds - self.reserve)

    def _leave_within(self, seconds: float) -> None:
        self.deadline = min(self.deadline, time.monotonic() + seconds)
        if not self.told:
            self.told = True
            start_new_thread(self._watch, ())

    def _watch(self) -> None:
        while (left := self.deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))  # the deadline may come closer
        _logger("worker").warning(
            "process %d was told to end and has not: gunicorn kills it in a moment, so what "
            "still runs is ended now. Let requests end sooner, or set %s higher.",
            self.pid,
            "--timeout" if self.hangs else "--graceful-timeout",
            extra={"lifeguard_pid": self.pid},
        )
        _ends.hurry()
        step = self.reserve / 4
        if self.loop is not None and not self.hangs and not self._loop_runs(step):
            os.kill(self.pid, signal.SIGABRT)
            time.sleep(step)  # a request that is cancelled twice has no time to roll back
        if callable(signal.getsignal(signal.SIGQUIT)):  # not so once the loop is closed
            os.kill(self.pid, signal.SIGQUIT)
        time.sleep(step)
        with self.closing:
            _ends.run(self.pid)

    def _wait_for_watch(self) -> None:
        """Let a watch that is closing finish: a thread ends in the middle with its process."""
        if os.getpid() == self.pid and self.closing.acquire(timeout=self.reserve):
            self.closing.release()

    def _loop_runs(self, seconds: float) -> bool:
        from threading import Event

        runs = Event()
        try:
            self.loop.call_soon_threadsafe(runs.set)
        except RuntimeError:  # closed: it has ended
            return True
        return runs.wait(seconds)


def _nothing() -> None:
    pass
