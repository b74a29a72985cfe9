"""What becomes of a worker whose parent is gone.

A server's master that is killed (SIGKILL, the OOM killer) cannot tell its workers. Those of
uvicorn, hypercorn, granian and gunicorn with uvicorn-worker stay: they hold their port and their
connections, and nobody restarts or stops them (docs/servers). Nothing in the worker notices by
itself, so a thread waits for the end of the parent: on Linux for its pidfd, which costs nothing
until then, elsewhere by asking once a second who the parent is.
"""

from __future__ import annotations

import os
import sys

from . import ends, fork
from .observer import logger

_me, _parent = os.getpid(), os.getppid()
_watched = 0  # the process in which the thread runs
_pidfd = -1

POLL = 1.0
"""Seconds between two looks, where the parent's end cannot be waited for."""


@fork.in_child
def _in_child() -> None:
    global _me, _parent, _pidfd
    if _me == os.getpid():  # imported after the fork, which was noticed later (gunicorn's config)
        return
    _me, _parent = os.getpid(), _me  # not getppid(): the parent may be gone already
    if _pidfd >= 0:
        os.close(_pidfd)  # that of the parent's parent
        _pidfd = -1


def watch(patience: float) -> None:
    """From now on this process ends in order when its parent is gone.

    It gets a SIGTERM, which every server takes for the wish to end gracefully. If it is still
    there after *patience* seconds, what is open is closed and the process is killed.
    """
    global _watched
    if _watched == _me or parent() == 0:  # 0: it is in another pid namespace, and out of sight
        return
    _watched = _me
    import _thread

    _thread.start_new_thread(_watch, (parent(), patience))


def parent() -> int:
    """The process that started this one, also when that is gone by now."""
    process = sys.modules.get("multiprocessing.process")
    starter = process.parent_process() if process is not None else None
    return int(starter.pid) if starter is not None else _parent


def _watch(pid: int, patience: float) -> None:
    try:
        _wait_for_end_of(pid)
        logger("worker").warning(
            "process %d, which started this worker, is gone: process %d ends as well "
            "(die_with_parent)",
            pid,
            _me,
            extra={"lifeguard_pid": _me},
        )
        _end_in_order(patience)
    except Exception:
        logger("worker").exception("the watch for the end of process %d failed", pid)


def _wait_for_end_of(pid: int) -> None:
    global _pidfd
    import select

    try:
        _pidfd = os.pidfd_open(pid)
    except ProcessLookupError:  # it ended before we came to watch
        return
    except (AttributeError, OSError):  # not Linux, or a sandbox that does not know the call
        _poll_for_end_of(pid)
        return
    poll = select.poll()
    poll.register(_pidfd, select.POLLIN)
    while not poll.poll():
        pass


def _poll_for_end_of(pid: int) -> None:
    import time

    if os.getppid() == pid:
        while os.getppid() == pid:
            time.sleep(POLL)
        return
    try:
        while True:  # a fork server stands between the two
            os.kill(pid, 0)
            time.sleep(POLL)
    except ProcessLookupError:
        return


def _end_in_order(patience: float) -> None:
    import signal
    import time

    os.kill(_me, signal.SIGTERM)
    time.sleep(patience)
    logger("worker").error(
        "process %d was told to end %g s ago, when its parent was gone, and has not: "
        "what is open is closed now, and the process killed",
        _me,
        patience,
        extra={"lifeguard_pid": _me},
    )
    try:
        ends.run(_me)
    finally:
        os.kill(_me, signal.SIGKILL)
