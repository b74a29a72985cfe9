"""Lanes: a few threads that many pieces of work share, without owning them.

Work that has to run in order and in one thread at a time, as code does that keeps a connection in
a thread-local, usually gets a thread of its own for as long as it lives. Then there are as many
threads, and as many connections, as requests and open tabs. Here each piece of work has a
:class:`Line`, which looks like an executor, and a line has a lane only while something is queued
on it, or while the lane's thread holds something that the line needs: an open transaction, for one.

* Jobs of one line run one at a time and in order, preferably in the thread that ran the last one.
* Who waits is served in turn. A line that a lane has begun goes before new ones, so that what was
  begun gets done, but not for ever.
* Nobody waits without a bound: :exc:`LaneTimeout` says who has the lanes.

What a thread holds is known to a :class:`Care`, which the host brings. There is no list of lines:
what ends is forgotten with its last reference.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from concurrent.futures import Future
from queue import Empty, SimpleQueue

from . import fork
from .clock import now
from .errors import ClosedError, LaneDeadlock, LaneTimeout
from .observer import logger
from .shield import Latch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, Protocol, TypeAlias

    Job: TypeAlias = tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]

    class Named(Protocol):
        @property
        def name(self) -> str: ...


TURNS = 8  #: how often lines that a lane knows are served before one that waits for any lane
LOOK = 0.5  #: seconds between two looks at who waits, while anybody does
AGAIN = 1.0  #: seconds for which a line that waited in vain does not wait once more
PARKED = 1.0  #: seconds that a lane keeps, unused, what its line may come back for


class Care:
    """What a lane asks about its thread, in its thread. This one knows of nothing."""

    def begin(self, number: int) -> None:
        """The thread is lane *number* from now on."""

    def held(self) -> str | None:
        """Why the line cannot go on in another thread, in a person's words, or None."""
        return None

    def rest(self) -> bool:
        """Nothing is queued. Give back what costs others. True if more is kept, for a moment."""
        return False

    def clean(self, *, force: bool = False) -> None:
        """Another line comes, or the last one is over. *force*: also what is held."""

    def end(self) -> None:
        """The thread ends."""


class Line:
    """An executor's ``submit`` for one piece of work."""

    __slots__ = (
        "__weakref__",
        "given_up",
        "is_over",
        "jobs",
        "lane",
        "lanes",
        "last",
        "own",
        "since",
        "work",
    )

    def __init__(self, lanes: Lanes, work: Named | str) -> None:
        self.lanes = lanes
        self.work = work  # what has the name that people are told
        self.jobs: deque[Job] = deque()
        self.lane: Lane | None = None  # that runs its jobs, or is held for it
        self.last: Lane | None = None
        self.since = 0.0  # when it began to wait, 0 while it does not
        self.is_over = False
        self.given_up = -AGAIN  # when it last waited in vain
        self.own: bool | None = None  # what made_here() said, once it was asked

    @property
    def name(self) -> str:
        return self.work if isinstance(self.work, str) else self.work.name

    def made_here(self) -> bool:
        """Whether this very process has asked for the work, and waits for it. A host may know."""
        return False

    @property
    def is_busy(self) -> bool:
        """Whether a job of it runs or waits."""
        lane = self.lane
        return bool(self.jobs) or (lane is not None and lane.why is None)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn(*args, **kwargs)`` after what was submitted before, in one of the lanes."""
        future: Future[Any] = Future()
        self.jobs.append((future, fn, args, kwargs))
        lane = self.lanes._assign(self)
        if lane is not None:
            lane.inbox.put(self)
        return future

    def over(self) -> None:
        """The work has ended. What is queued still runs; nothing is kept for it any more."""
        self.is_over = True
        self.work = self.name  # and nothing more of it is kept
        lane = self.last
        # A look for what is not locked: a lane that is busy looks itself when the job is done.
        if lane is not None and lane.line_kept is self and (lane.keeps or lane.why is not None):
            lane.inbox.put(_LOOK)

    def __repr__(self) -> str:
        return f"<Line {self.name}>"


class Lane:
    """One thread."""

    __slots__ = (
        "ended",
        "inbox",
        "keeps",
        "lanes",
        "line",
        "line_kept",
        "number",
        "pinned",
        "since",
        "thread",
        "turns",
        "why",
    )

    def __init__(self, lanes: Lanes, number: int) -> None:
        self.lanes = lanes
        self.number = number
        self.inbox: SimpleQueue[Any] = SimpleQueue()
        self.ended = Latch()
        self.line: Line | None = None  # whose it is now
        self.line_kept: Line | None = None  # whose things are in the thread
        self.keeps = False
        self.why: str | None = None  # it is held, although nothing is queued
        self.since = now()
        self.turns = 0
        self.pinned: deque[Line] = deque()  # lines that ran here last, and wait
        self.thread = threading.Thread(
            target=self._main, name=f"lifeguard lane {number}", daemon=True
        )

    def _main(self) -> None:
        care = self.lanes.care
        try:
            care.begin(self.number)
            seconds: float | None = None
            while True:
                try:
                    what: Any = self.inbox.get(timeout=seconds)
                except Empty:
                    what = _LOOK
                if what is None:
                    break
                if what is _LOOK:
                    what = self._look()
                elif what.lane is not self or not what.jobs:
                    continue  # it was served by a look in the very moment it was queued
                while what is not None:
                    what = self._serve(what)
                seconds = PARKED if self.keeps or self.why is not None else None
        finally:
            try:
                self._clean(force=True)
                care.end()
            except BaseException as exc:
                _log(f"lane {self.number} could not close what it has", exc)
            self.ended.set()

    def _serve(self, line: Line) -> Line | None:
        """Run the next job of *line*. Returns whose job is next in this thread."""
        if self.line_kept is not line:
            self._clean()
            self.line_kept = line
        self.why = None
        future, fn, args, kwargs = line.jobs.popleft()
        if not future.set_running_or_notify_cancel():
            return self._next(line)
        self.since = now()
        # The lane is free, or has its next line, before the result is out: who gets it goes on at
        # once, and this thread has then nothing left to do but to sleep.
        try:
            result = fn(*args, **kwargs)
        except BaseException as exc:
            del fn, args, kwargs  # nothing of the app's lives on in an idle thread
            following = self._next(line)
            future.set_exception(exc)
            del future  # its exception has this frame in its traceback
        else:
            del fn, args, kwargs
            following = self._next(line)
            future.set_result(result)
        return following

    def _next(self, line: Line) -> Line | None:
        care = self.lanes.care
        try:
            if line.is_over:
                care.clean()
            why = care.held()
            if why is not None and line.is_over and self._is_patient_no_more():
                _log(
                    f"lane {self.number} was held for {line.name}, which is over: {why}. It is "
                    "rolled back and closed"
                )
                self._clean(force=True)
                why = None
            if not line.jobs and why is None:
                self.keeps = care.rest()
                if self.keeps and line.is_over:
                    self._clean()
        except Exception as exc:  # a connection that is broken beyond being asked
            _log(f"lane {self.number} could not look after its connections", exc)
            why = None
            self._clean(force=True)
        return self.lanes._next(self, line, why)

    def _look(self) -> Line | None:
        """A moment later, with nothing to do: is what is kept still needed?"""
        line = self.line_kept
        if line is None:
            return None
        if self.why is None:
            self._clean()
            return None
        return self._next(line)

    def _is_patient_no_more(self) -> bool:
        return self.why is not None and now() - self.since > self.lanes.patience

    def _clean(self, *, force: bool = False) -> None:
        self.line_kept = None
        self.keeps = False
        try:
            self.lanes.care.clean(force=force)
        except Exception as exc:
            _log(f"lane {self.number} could not clean up its connections", exc)

    def describe(self) -> dict[str, Any]:
        """What it does now, for people and scripts. No values, no parameters."""
        line = self.line
        state = "free" if line is None else "busy" if self.why is None else "held"
        said: dict[str, Any] = {
            "lane": self.number,
            "state": state,
            "by": None if line is None else line.name,
            "why": None if line is None else self.why,
            "seconds": round(max(0.0, now() - self.since), 3),
            "at": None,
        }
        if state == "busy" and self.thread.ident is not None:
            said["at"] = _innermost(sys._current_frames().get(self.thread.ident))
        return said


class Lanes:
    """At most *size* threads, made when they are needed. See the module's docstring.

    *timeout* is how long work may wait for one, in seconds; *patience* how long something that
    is over may hold one. *setting* is what a person changes to have more of them.
    """

    def __init__(
        self,
        size: int,
        *,
        timeout: float = 30.0,
        patience: float = 10.0,
        care: Care | None = None,
        setting: str = "size",
    ) -> None:
        if size < 1:
            raise ValueError(f"there have to be lanes: {setting} must be 1 or more, not {size}")
        self.size = size
        self.timeout = timeout
        self.patience = patience
        self.care = care or Care()
        self.setting = setting
        self.lanes: list[Lane] = []
        self._lock = threading.Lock()
        self._free: list[Lane] = []  # used last, taken first: few stay warm
        self._waiting: deque[Line] = deque()  # for any lane
        self._watching = False
        self._closed = False
        fork.watch(self)

    # -- what hosts use ------------------------------------------------------------------------

    def describe(self) -> list[dict[str, Any]]:
        return [lane.describe() for lane in self.lanes]

    def waiting(self) -> list[dict[str, Any]]:
        with self._lock:
            lines = self._all_waiting()
        return [
            {"by": line.name, "seconds": round(max(0.0, now() - line.since), 3)} for line in lines
        ]

    def close(self, seconds: float) -> None:
        """Take no more work, and wait for the threads to end, for so long."""
        until = now() + seconds
        for ended in self._stop():
            ended.wait(max(0.0, until - now()))

    async def aclose(self) -> None:
        """The same where there is an event loop, which the last jobs may need."""
        for ended in self._stop():
            await ended.wait_async()

    def _stop(self) -> list[Latch]:
        """Lanes end when they have run what is queued on the lines that they have."""
        with self._lock:
            self._closed = True
            lines = self._all_waiting()
            for lane in self.lanes:
                lane.inbox.put(None)
            self._forget(lines)
        for line in lines:
            self._fail(
                line, ClosedError(f"{line.name} waited for a lane, and the worker has ended")
            )
        return [lane.ended for lane in self.lanes]

    def after_fork(self) -> None:
        """This is a child: the threads are the parent's, and so is what they hold."""
        self._lock = threading.Lock()
        self._closed = True

    # -- who gets which lane. All of it under the lock -----------------------------------------

    def _assign(self, line: Line) -> Lane | None:
        """Something is queued on *line*: the lane to wake for it, if there is one."""
        with self._lock:
            lane = line.lane
            if lane is not None:  # its thread comes to it by itself, unless it is parked
                if lane.why is None or not line.jobs:
                    return None
                lane.why = None
                return lane
            if line.since or not line.jobs:
                return None
            if self._closed:
                jobs = self._take_jobs(line)
                error: Exception = ClosedError(
                    f"{line.name} has work for a lane, and the worker has ended"
                )
            else:
                lane = self._pick(line)
                if lane is not None:
                    self._bind(lane, line)
                    return lane
                if now() - line.given_up >= AGAIN:
                    self._queue(line)
                    return None
                # What comes after a timeout, an error page for one, is not to wait as long again.
                jobs = self._take_jobs(line)
                error = LaneTimeout(
                    f"{line.name} waited for a lane in vain just now, and none is free yet"
                )
        _fail(jobs, error)
        return None

    def _queue(self, line: Line) -> None:
        line.since = now()
        last = line.last
        if last is None or last.why is not None:
            self._waiting.append(line)
        else:
            last.pinned.append(line)
        self._watch()

    def _pick(self, line: Line) -> Lane | None:
        free = self._free
        if free:
            if line.last is not None and line.last in free:
                free.remove(line.last)
                return line.last
            for i in range(len(free) - 1, -1, -1):
                if not free[i].keeps:
                    return free.pop(i)
        if len(self.lanes) < self.size:
            lane = Lane(self, len(self.lanes) + 1)
            lane.thread.start()
            self.lanes.append(lane)
            return lane
        return free.pop() if free else None

    def _bind(self, lane: Lane, line: Line) -> None:
        lane.line = line
        lane.since = now()
        line.lane = line.last = lane
        line.since = 0.0

    def _next(self, lane: Lane, line: Line, why: str | None) -> Line | None:
        """*lane* has run a job of *line*: what is next? None leaves it free, or held."""
        with self._lock:
            if line.jobs:
                if why is not None or not (self._waiting or lane.pinned):
                    return line
                line.lane = None
                line.since = now()
                lane.pinned.append(line)
            elif why is not None:
                if lane.why is None:  # and not one more look at the same
                    lane.since = now()
                lane.why = why
                # Nobody knows for how long. Who waited for this one waits for any.
                self._waiting.extendleft(reversed(lane.pinned))
                lane.pinned.clear()
                return None
            else:
                lane.why = None
                line.lane = None
            following = self._take(lane)
            if following is None:
                lane.line = None
                lane.since = now()
                self._free.append(lane)
                return None
            self._bind(lane, following)
            return following

    def _take(self, lane: Lane) -> Line | None:
        """Who waited, and is served by *lane* now."""
        if lane.pinned and (lane.turns < TURNS or not self._waiting):
            lane.turns += 1
            return lane.pinned.popleft()
        lane.turns = 0
        if self._waiting:
            return self._waiting.popleft()
        for other in self.lanes:
            if other.pinned:
                return other.pinned.popleft()
        return None

    # -- who waits for too long ----------------------------------------------------------------

    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            threading.Thread(target=self._look_often, name="lifeguard lanes", daemon=True).start()

    def _look_often(self) -> None:
        """Look at who waits, while anybody does. Most have their lane before the first look."""
        pause = threading.Event()
        while not pause.wait(min(LOOK, self.timeout / 2)) and self._look():
            pass

    def _all_waiting(self) -> list[Line]:
        lines = list(self._waiting)
        for lane in self.lanes:
            lines += lane.pinned
        return sorted(lines, key=_since)

    def _look(self) -> bool:
        """Fail those who waited for too long. False if nobody waits any more."""
        with self._lock:
            lines = self._all_waiting()
            if not lines:
                self._watching = False
                return False
            at = now()
            late = [line for line in lines if at - line.since >= self.timeout]
            for lane in self.lanes:
                if lane.why is not None:
                    lane.inbox.put(_LOOK)
        # Whoever waits at all waits because every lane is taken.
        stuck = None if late else self._stuck([x for x in lines if at - x.since > LOOK])
        with self._lock:
            failing = [x for x in late or ([stuck] if stuck else []) if x.since]
            self._forget(failing)
        for line in failing:
            self._fail(line, self._explain(line, at, deadlock=line is stuck))
        return True

    def _stuck(self, lines: list[Line]) -> Line | None:
        """The line to give up, where each lane waits for a request that this process made."""
        mine: list[Line] = []
        for line in lines:
            if line.own is None:
                line.own = line.made_here()
            if line.own:
                mine.append(line)
        return mine[0] if len(mine) >= self.size else None

    def _explain(self, line: Line, at: float, *, deadlock: bool) -> LaneTimeout:
        holders = "\n".join(_sentence(lane.describe()) for lane in self.lanes)
        more = (
            f"Raise {self.setting} (now {self.size}), shorten what holds them, or look for "
            f"transactions that stay open between calls. Lanes:\n{holders}"
        )
        if deadlock:
            return LaneDeadlock(
                f"{line.name} waits for a lane, and so does a request of this very process for "
                f"each of the {self.size} lanes: they would wait for each other for ever, so this "
                "one is given up. Call the function instead of your own URL, or call it where no "
                f"lane is held (an async view with an async client). {more}"
            )
        return LaneTimeout(
            f"{line.name} waited for a lane for {at - line.since:.1f} s, as all "
            f"{self.size} were taken. {more}"
        )

    def _forget(self, lines: list[Line]) -> None:
        for line in lines:
            for queue in (self._waiting, *(lane.pinned for lane in self.lanes)):
                try:
                    queue.remove(line)
                except ValueError:
                    continue

    def _fail(self, line: Line, exc: Exception) -> None:
        with self._lock:
            line.since = 0.0
            line.given_up = now()
            jobs = self._take_jobs(line)
        _fail(jobs, exc)

    def _take_jobs(self, line: Line) -> list[Job]:
        jobs = list(line.jobs)
        line.jobs.clear()
        return jobs


_LOOK: Any = object()


def _fail(jobs: list[Job], exc: Exception) -> None:
    for future, *_ in jobs:
        if future.set_running_or_notify_cancel():
            future.set_exception(exc)


def _since(line: Line) -> float:
    return line.since


def _sentence(said: dict[str, Any]) -> str:
    text = f"  lane {said['lane']}: {said['state']}"
    if said["by"] is None:
        return text
    text += f" for {said['seconds']:.1f} s by {said['by']}"
    if said["why"]:
        text += f": {said['why']}"
    if said["at"]:
        text += f", at {said['at']}"
    return text


def _innermost(frame: FrameType | None) -> str | None:
    """Where a thread is, as code of the app: not in this package, nor in the standard library."""
    from .unit import plumbing

    first = frame
    while frame is not None:
        name = frame.f_globals.get("__name__", "").partition(".")[0]
        if name not in plumbing and name not in sys.stdlib_module_names:
            first = frame
            break
        frame = frame.f_back
    if first is None:
        return None
    code = first.f_code
    return f"{code.co_filename}:{first.f_lineno} in {code.co_qualname}"


def _log(what: str, exc: BaseException | None = None) -> None:
    logger("unit").warning("%s", what, exc_info=exc)
