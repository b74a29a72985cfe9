"""Lanes: a few threads, many lines. Each test is a sentence about who runs where, and when.

A *gate* is a job that says when it has begun and ends when it is told to: that is all the
synchronisation there is.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lifeguard import ClosedError
from lifeguard._core import lanes as lanes_module
from lifeguard._core.errors import LaneDeadlock, LaneTimeout
from lifeguard._core.lanes import TURNS, Care, Lanes, Line

SOON = 10.0  # seconds: for what must happen, on a busy machine


class Holding(Care):
    """A thread that holds what the test puts into ``why``, and writes down what it is told."""

    def __init__(self) -> None:
        self.here = threading.local()
        self.told: list[str] = []

    def begin(self, number: int) -> None:
        self.here.number = number
        self.here.why = None
        self.here.kept = False

    def held(self) -> str | None:
        why: str | None = self.here.why
        return why

    def rest(self) -> bool:
        kept: bool = self.here.kept
        return kept

    def clean(self, *, force: bool = False) -> None:
        self.told.append("clean, force" if force else "clean")
        self.here.kept = False
        if force:
            self.here.why = None

    def end(self) -> None:
        self.told.append("end")


class Gate:
    """A job that waits."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()

    def __call__(self) -> threading.Thread:
        self.begun.set()
        assert self.go.wait(SOON)
        return threading.current_thread()


class Asked(Line):
    """A line that the test says of whether this process has made the request."""

    __slots__ = ("answer",)

    answer: Callable[[], bool]

    def made_here(self) -> bool:
        return self.answer()


def me() -> threading.Thread:
    return threading.current_thread()


@pytest.fixture
def care() -> Holding:
    return Holding()


@pytest.fixture
def make(care: Holding) -> Iterator[Callable[..., Lanes]]:
    """Lanes, closed at the end of the test."""
    made: list[Lanes] = []

    def make(size: int, **options: object) -> Lanes:
        lanes = Lanes(size, care=care, **options)  # type: ignore[arg-type]
        made.append(lanes)
        return lanes

    yield make
    for lanes in made:
        lanes.close(SOON)


def held(care: Holding, why: str | None) -> Callable[[], threading.Thread]:
    """A job after which its thread holds something, or nothing any more."""

    def job() -> threading.Thread:
        care.here.why = why
        return threading.current_thread()

    return job


def test_the_jobs_of_a_line_run_in_order(make: Callable[..., Lanes]) -> None:
    """What is submitted first is done first, one at a time, though there are more lanes."""
    line = Line(make(4), "GET /")
    ran: list[int] = []
    futures = [line.submit(ran.append, i) for i in range(100)]
    wait(futures, SOON)
    assert ran == list(range(100))


def test_results_and_exceptions_come_back(make: Callable[..., Lanes]) -> None:
    """The future has what the job returned or raised, and the lane goes on after either."""
    line = Line(make(1), "GET /")
    assert line.submit(divmod, 7, 2).result(SOON) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        line.submit(divmod, 7, 0).result(SOON)
    with pytest.raises(SystemExit):
        line.submit(sys.exit, 3).result(SOON)
    assert line.submit(int, "12", base=3).result(SOON) == 5


def test_there_are_no_more_threads_than_lanes(make: Callable[..., Lanes]) -> None:
    """Forty lines at once share three threads."""
    lanes = make(3)
    lines = [Line(lanes, f"GET /{i}") for i in range(40)]
    futures = [line.submit(me) for line in lines for _ in range(3)]
    assert len({future.result(SOON) for future in futures}) <= 3
    assert len(lanes.lanes) <= 3


def test_a_thread_is_made_when_it_is_needed(make: Callable[..., Lanes]) -> None:
    """One request after another needs one thread, and no more are made."""
    lanes = make(8)
    threads = {Line(lanes, f"GET /{i}").submit(me).result(SOON) for i in range(20)}
    assert len(threads) == 1
    assert len(lanes.lanes) == 1


def test_an_idle_line_has_no_lane(make: Callable[..., Lanes]) -> None:
    """Twelve open tabs on one lane: each gets its turn, for none of them keeps the lane."""
    lanes = make(1)
    lines = [Line(lanes, f"GET /tab/{i}") for i in range(12)]
    for _ in range(3):
        for line in lines:
            line.submit(me).result(SOON)
    assert [lane["state"] for lane in lanes.describe()] == ["free"]


def test_a_line_comes_back_to_its_thread(make: Callable[..., Lanes]) -> None:
    """With lanes free, the next call of a request runs where its last one ran."""
    lanes = make(2)
    first, second = Line(lanes, "GET /a"), Line(lanes, "GET /b")
    gate = Gate()
    waiting = second.submit(gate)
    assert gate.begun.wait(SOON)
    home = first.submit(me).result(SOON)
    gate.go.set()
    assert waiting.result(SOON) is not home
    for _ in range(5):
        assert first.submit(me).result(SOON) is home
        assert second.submit(me).result(SOON) is not home


def test_a_line_that_holds_something_keeps_its_lane(
    make: Callable[..., Lanes], care: Holding
) -> None:
    """An open transaction keeps its thread between two calls; whoever comes meanwhile waits."""
    lanes = make(1)
    holder, other = Line(lanes, "POST /a"), Line(lanes, "GET /b")
    home = holder.submit(held(care, "a transaction is open")).result(SOON)
    future = other.submit(me)
    assert lanes.describe()[0]["state"] == "held"
    assert lanes.describe()[0]["why"] == "a transaction is open"
    assert [waiting["by"] for waiting in lanes.waiting()] == ["GET /b"]
    assert holder.submit(me).result(SOON) is home
    assert not future.done()
    assert holder.submit(held(care, None)).result(SOON) is home
    assert future.result(SOON) is home
    assert care.told.count("clean") >= 1  # between the two


def test_who_waits_is_served_in_turn(make: Callable[..., Lanes]) -> None:
    """Lines that have not run yet get the lane in the order in which they came."""
    lanes = make(1)
    gate = Gate()
    first = Line(lanes, "GET /first").submit(gate)
    assert gate.begun.wait(SOON)
    ran: list[int] = []
    futures = [Line(lanes, f"GET /{i}").submit(ran.append, i) for i in range(10)]
    gate.go.set()
    wait([first, *futures], SOON)
    assert ran == list(range(10))


def test_what_was_begun_goes_on_first_but_not_for_ever(make: Callable[..., Lanes]) -> None:
    """A line with much to do is served before a new one, and the new one after its turns."""
    lanes = make(1)
    busy = Line(lanes, "GET /busy")
    gate = Gate()
    ran: list[str] = []
    futures: list[Future[object]] = [busy.submit(gate)]
    assert gate.begun.wait(SOON)
    futures += [busy.submit(ran.append, "busy") for _ in range(50)]
    futures.append(Line(lanes, "GET /new").submit(ran.append, "new"))
    gate.go.set()
    wait(futures, SOON)
    assert ran.index("new") == TURNS
    assert len(ran) == 51


def test_a_free_lane_takes_who_waits_for_a_busy_one(make: Callable[..., Lanes]) -> None:
    """A line prefers the thread it knows, and does not wait for it when another one is free."""
    lanes = make(2)
    line = Line(lanes, "GET /a")
    home = line.submit(me).result(SOON)
    blocks, other = Gate(), Gate()
    futures: list[Future[object]] = [Line(lanes, "GET /slow").submit(blocks)]  # takes its thread
    assert blocks.begun.wait(SOON)
    futures.append(Line(lanes, "GET /quick").submit(other))  # and this one the second
    assert other.begun.wait(SOON)
    future = line.submit(me)
    assert not future.done()
    other.go.set()
    assert future.result(SOON) is not home
    blocks.go.set()
    wait(futures, SOON)


def test_a_job_that_was_cancelled_while_it_waited_does_not_run(
    make: Callable[..., Lanes],
) -> None:
    """A client that leaves while its request waits costs nothing, and loses no lane."""
    lanes = make(1)
    gate = Gate()
    first = Line(lanes, "GET /slow").submit(gate)
    assert gate.begun.wait(SOON)
    ran: list[str] = []
    line = Line(lanes, "GET /left")
    left = line.submit(ran.append, "left")
    assert left.cancel()
    gate.go.set()
    first.result(SOON)
    assert line.submit(ran.append, "next").result(SOON) is None
    with pytest.raises(CancelledError):
        left.result(SOON)
    assert ran == ["next"]


def test_waiting_is_bounded_and_says_who_has_the_lanes(
    make: Callable[..., Lanes], care: Holding
) -> None:
    """After the timeout the error names each lane: who, why, since when, and where in the code."""
    lanes = make(2, timeout=0.2, setting="LIFEGUARD['LANES']")
    holder = Line(lanes, "POST /order")
    holder.submit(held(care, "a transaction is open")).result(SOON)
    gate = Gate()
    busy = Line(lanes, "GET /report").submit(gate)
    assert gate.begun.wait(SOON)
    with pytest.raises(LaneTimeout) as caught:
        Line(lanes, "GET /late").submit(me).result(SOON)
    gate.go.set()
    busy.result(SOON)
    said = str(caught.value)
    assert said.startswith("GET /late waited for a lane for 0.")
    assert "lane 1: held for" in said and "by POST /order: a transaction is open" in said
    assert "lane 2: busy for" in said and "by GET /report, at " in said
    assert "test_lanes.py" in said  # where it is
    assert "Raise LIFEGUARD['LANES'] (now 2)" in said
    holder.submit(held(care, None)).result(SOON)


def test_after_a_timeout_nobody_waits_as_long_again(make: Callable[..., Lanes]) -> None:
    """The error page of a request that waited in vain is not kept waiting for the same lanes."""
    lanes = make(1, timeout=0.2)
    gate = Gate()
    busy = Line(lanes, "GET /slow").submit(gate)
    assert gate.begun.wait(SOON)
    line = Line(lanes, "GET /late")
    with pytest.raises(LaneTimeout, match=r"waited for a lane for 0\."):
        line.submit(me).result(SOON)
    again = line.submit(me)
    assert again.done()
    with pytest.raises(LaneTimeout, match="GET /late waited for a lane in vain just now"):
        again.result()
    gate.go.set()
    busy.result(SOON)
    assert line.submit(me).result(SOON)  # as soon as one is free


def test_a_line_that_was_given_up_can_wait_again(
    make: Callable[..., Lanes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A moment later it waits in turn, as everybody does."""
    monkeypatch.setattr(lanes_module, "AGAIN", 0.0)
    lanes = make(1, timeout=0.2)
    gate = Gate()
    busy = Line(lanes, "GET /slow").submit(gate)
    assert gate.begun.wait(SOON)
    line = Line(lanes, "GET /late")
    with pytest.raises(LaneTimeout):
        line.submit(me).result(SOON)
    again = line.submit(me)
    gate.go.set()
    assert again.result(SOON)
    busy.result(SOON)


def test_lanes_that_wait_for_each_other_are_told(make: Callable[..., Lanes]) -> None:
    """Two views ask their own server for a page each: one is given up at once, with the reason."""
    lanes = make(2, timeout=60)
    inner: list[Future[object]] = []
    begun = threading.Barrier(2)

    def view(path: str) -> object:
        begun.wait(SOON)
        line = Asked(lanes, path)
        line.answer = lambda: True
        inner.append(line.submit(me))
        return inner[-1].exception(SOON) or "200"

    outer = [Line(lanes, f"GET /{i}").submit(view, f"GET /inner/{i}") for i in range(2)]
    results = [future.result(2 * SOON) for future in outer]
    assert sorted(map(type, results), key=str) == sorted([LaneDeadlock, str], key=str)
    (given_up,) = [result for result in results if isinstance(result, LaneDeadlock)]
    assert "a request of this very process for each of the 2 lanes" in str(given_up)
    assert "Call the function instead of your own URL" in str(given_up)


def test_one_request_to_the_own_server_is_no_deadlock(make: Callable[..., Lanes]) -> None:
    """With a lane left, a view may ask its own server."""
    lanes = make(2, timeout=60)

    def view() -> object:
        line = Asked(lanes, "GET /inner")
        line.answer = lambda: True
        return line.submit(str, "inner").result(SOON)

    assert Line(lanes, "GET /outer").submit(view).result(SOON) == "inner"


def test_what_is_kept_is_cleaned_a_moment_later(
    make: Callable[..., Lanes], care: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that its line may come back for is closed when it does not."""
    monkeypatch.setattr(lanes_module, "PARKED", 0.05)
    lanes = make(1)
    line = Line(lanes, "GET /")

    def keep() -> None:
        care.here.kept = True

    before = care.told.count("clean")
    line.submit(keep).result(SOON)
    eventually(lambda: care.told.count("clean") > before + 1)
    assert not lanes.lanes[0].keeps


def test_what_is_kept_is_cleaned_when_the_line_is_over(
    make: Callable[..., Lanes], care: Holding
) -> None:
    """The end of a request does not wait for that moment."""
    lanes = make(1)
    line = Line(lanes, "GET /")

    def keep() -> None:
        care.here.kept = True

    line.submit(keep).result(SOON)
    cleaned = care.told.count("clean")
    line.over()
    eventually(lambda: care.told.count("clean") > cleaned)


def test_a_line_that_is_over_cannot_hold_a_lane_for_ever(
    make: Callable[..., Lanes],
    care: Holding,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A transaction that a request has left open is rolled back, said, and the lane is free."""
    monkeypatch.setattr(lanes_module, "PARKED", 0.05)  # many looks, none of which starts it anew
    lanes = make(1, patience=0.3)
    line = Line(lanes, "POST /left-open")
    line.submit(held(care, "a transaction is open")).result(SOON)
    line.over()
    assert Line(lanes, "GET /next").submit(me).result(SOON)
    assert "clean, force" in care.told
    assert "POST /left-open, which is over: a transaction is open" in caplog.text


def test_a_line_that_is_over_still_runs_what_it_is_given(make: Callable[..., Lanes]) -> None:
    """A task that outlives its request gets to the lanes by the request's line."""
    line = Line(make(1), "GET /")
    line.over()
    assert line.submit(str, "late").result(SOON) == "late"
    assert line.name == "GET /"


def test_closing_runs_what_has_begun_and_refuses_the_rest(
    make: Callable[..., Lanes], care: Holding
) -> None:
    """At the worker's end: what runs ends, what waits is told why not, and threads are gone."""
    lanes = make(1)
    gate = Gate()
    line = Line(lanes, "GET /slow")
    running, queued = line.submit(gate), line.submit(str, "queued")
    assert gate.begun.wait(SOON)
    waiting = Line(lanes, "GET /waits").submit(me)
    closer = threading.Thread(target=lanes.close, args=(SOON,))
    closer.start()
    with pytest.raises(ClosedError, match="GET /waits waited for a lane"):
        waiting.result(SOON)
    gate.go.set()
    closer.join(SOON)
    assert running.result(SOON) and queued.result(SOON) == "queued"
    assert care.told[-1] == "end"
    eventually(lambda: not lanes.lanes[0].thread.is_alive())
    with pytest.raises(ClosedError, match="GET /after has work for a lane"):
        Line(lanes, "GET /after").submit(me).result(SOON)


def test_an_idle_lane_keeps_nothing_alive(make: Callable[..., Lanes]) -> None:
    """Arguments and results are the request's: a thread that sleeps has no hold of them."""

    class Thing:
        pass

    line = Line(make(1), "GET /")
    thing = Thing()
    ref = weakref.ref(thing)
    result: Future[object] = line.submit(lambda given: given, thing)
    assert result.result(SOON) is thing
    del thing, result
    line.submit(me).result(SOON)  # the thread has left the job before
    gc.collect()
    assert ref() is None


def test_a_line_that_is_over_keeps_its_name_and_no_more(make: Callable[..., Lanes]) -> None:
    """Tasks that outlive a request have its line, and not the request by it."""

    class Request:
        name = "GET /big"

    request = Request()
    ref = weakref.ref(request)
    line = Line(make(1), request)
    line.submit(me).result(SOON)
    line.over()
    del request
    assert ref() is None
    assert line.name == "GET /big"


def test_lines_are_forgotten_with_their_last_reference(make: Callable[..., Lanes]) -> None:
    """Nothing grows with the number of requests: a lane remembers the last one, and no more."""
    lanes = make(2)
    refs = []
    for i in range(50):
        line = Line(lanes, f"GET /{i}")
        line.submit(me).result(SOON)
        line.over()
        refs.append(weakref.ref(line))
    del line
    gc.collect()
    assert sum(ref() is not None for ref in refs) <= 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_is_refused_instead_of_waiting(make: Callable[..., Lanes]) -> None:
    """The threads are the parent's: work for them in a child fails at once."""
    lanes = make(1)
    Line(lanes, "GET /").submit(me).result(SOON)
    pid = os.fork()
    if pid == 0:
        try:
            Line(lanes, "GET /child").submit(me).result(SOON)
        except ClosedError:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert Line(lanes, "GET /").submit(str, "parent").result(SOON) == "parent"


def test_there_has_to_be_a_lane() -> None:
    """None at all would mean to wait for ever, and the message names the setting."""
    with pytest.raises(ValueError, match=r"LIFEGUARD\['LANES'\] must be 1 or more, not 0"):
        Lanes(0, setting="LIFEGUARD['LANES']")


jobs = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["plain", "hold", "let go", "raise", "keep"])),
    max_size=60,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(size=st.integers(1, 3), plan=jobs)
def test_whatever_comes_each_job_runs_once_in_order_and_in_its_thread(
    size: int, plan: list[tuple[int, str]]
) -> None:
    """Any mix of lines that hold, let go, raise and keep: the model is a list per line."""
    care = Holding()
    lock = threading.Lock()
    running: set[int] = set()
    ran: dict[int, list[int]] = {}
    homes: dict[int, threading.Thread] = {}  # of lines that hold something
    wrong: list[str] = []

    def job(line: int, number: int, what: str) -> None:
        with lock:
            if line in running:
                wrong.append(f"two jobs of line {line} at once")
            running.add(line)
            home = homes.get(line)
            if home is not None and home is not threading.current_thread():
                wrong.append(f"line {line} was moved although it held something")
            if care.here.why is not None and care.here.why != line:
                wrong.append(f"line {line} found what line {care.here.why} holds")
            ran.setdefault(line, []).append(number)
            if what == "hold":
                care.here.why = line
                homes[line] = threading.current_thread()
            elif what == "let go" and care.here.why == line:
                care.here.why = None
                homes.pop(line, None)
            elif what == "keep":
                care.here.kept = True
            running.discard(line)
        if what == "raise":
            raise ValueError(number)

    lanes = Lanes(size, care=care, patience=0.05, timeout=SOON)
    lines = {i: Line(lanes, f"line {i}") for i in range(6)}
    # Every line lets go in the end, or those that wait would be in the right to wait.
    whole = [*plan, *((i, "let go") for i in range(6))]
    held_by: set[int] = set()
    futures = []
    for number, (line, wanted) in enumerate(whole):
        what = wanted
        if what == "hold" and len(held_by | {line}) > size - 1:
            what = "plain"  # one lane stays, so that everybody gets through
        elif what == "hold":
            held_by.add(line)
        futures.append(lines[line].submit(job, line, number, what))
    _, not_done = wait(futures, 2 * SOON)
    lanes.close(SOON)
    assert not not_done
    assert wrong == []
    for line in lines:
        assert ran.get(line, []) == [i for i, (owner, _) in enumerate(whole) if owner == line]
    assert len(lanes.lanes) <= size


def eventually(true: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(SOON / 0.01)):
        if true():
            return
        pause.wait(0.01)
    raise AssertionError("it did not come true in time")


# -- what a moment's wait would cover up ----------------------------------------------------------
# A lane looks after what it keeps a moment after it fell idle, and then much comes right by itself.
# For these tests that moment never comes.


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes_module, "PARKED", 3600.0)


def keep(care: Holding) -> Callable[[], threading.Thread]:
    """A job after which its thread keeps something for its line, and others may come."""

    def job() -> threading.Thread:
        care.here.kept = True
        return threading.current_thread()

    return job


@pytest.mark.usefixtures("patient")
def test_a_held_lane_comes_to_its_line_at_once(make: Callable[..., Lanes], care: Holding) -> None:
    """The next call of a transaction does not wait for a look at it."""
    line = Line(make(1), "POST /")
    home = line.submit(held(care, "a transaction is open")).result(SOON)
    assert line.submit(held(care, None)).result(SOON) is home


@pytest.mark.usefixtures("patient")
def test_the_end_of_a_line_cleans_what_is_kept_at_once(
    make: Callable[..., Lanes], care: Holding
) -> None:
    """With CONN_MAX_AGE=0 the connection goes with its request."""
    lanes = make(1)
    line = Line(lanes, "GET /")
    line.submit(keep(care)).result(SOON)
    before = care.told.count("clean")
    line.over()
    eventually(lambda: care.told.count("clean") > before)
    assert not lanes.lanes[0].keeps
    assert lanes.lanes[0].line_kept is None  # and nothing of the request is remembered


@pytest.mark.usefixtures("patient")
def test_what_a_last_job_keeps_is_cleaned_at_once(
    make: Callable[..., Lanes], care: Holding
) -> None:
    """The request was over before its last call was done."""
    line = Line(make(1), "GET /")
    gate = Gate()
    running = line.submit(lambda: (gate(), keep(care)()))
    assert gate.begun.wait(SOON)
    before = care.told.count("clean")
    line.over()
    gate.go.set()
    running.result(SOON)
    eventually(lambda: care.told.count("clean") > before)


@pytest.mark.usefixtures("patient")
def test_the_end_of_a_line_frees_what_was_held_for_too_long(
    make: Callable[..., Lanes], care: Holding
) -> None:
    """Nobody waits, so nobody looks: the end of the request does."""
    lanes = make(1, patience=0.01)
    line = Line(lanes, "POST /left-open")
    line.submit(held(care, "a transaction is open")).result(SOON)
    eventually(lambda: lanes.describe()[0]["seconds"] > 0.05)
    line.over()
    eventually(lambda: lanes.describe()[0]["state"] == "free")
    assert "clean, force" in care.told


def test_a_lane_nobody_waits_for_is_freed_too(
    make: Callable[..., Lanes],
    care: Holding,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lock that a request has left is not there until the next one happens to come."""
    monkeypatch.setattr(lanes_module, "PARKED", 0.02)
    lanes = make(1, patience=0.1)
    line = Line(lanes, "POST /left-open")
    line.submit(held(care, "an advisory lock is held")).result(SOON)
    line.over()
    eventually(lambda: lanes.describe()[0]["state"] == "free")
    assert "POST /left-open, which is over: an advisory lock is held" in caplog.text


def test_a_line_that_goes_on_may_hold_its_lane_for_longer(
    make: Callable[..., Lanes], care: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patience is for what is over. A long transaction of a request that lives is its own."""
    monkeypatch.setattr(lanes_module, "PARKED", 0.01)
    looks = threading.Semaphore(0)
    ask = care.held

    def counted() -> str | None:
        looks.release()
        return ask()

    monkeypatch.setattr(care, "held", counted)
    lanes = make(1, patience=0.001)
    line = Line(lanes, "POST /long")
    line.submit(held(care, "a transaction is open")).result(SOON)
    for _ in range(5):
        assert looks.acquire(timeout=SOON)
    assert lanes.describe()[0]["state"] == "held"
    assert "clean, force" not in care.told
    line.submit(held(care, None)).result(SOON)


@pytest.mark.usefixtures("patient")
def test_what_is_kept_for_a_line_is_there_when_it_comes_back(
    make: Callable[..., Lanes], care: Holding
) -> None:
    """Not cleaned between two calls, nor by the end of another line that was there before."""
    lanes = make(1)
    before = Line(lanes, "GET /before")
    before.submit(me).result(SOON)
    line = Line(lanes, "GET /")
    line.submit(keep(care)).result(SOON)
    cleaned = care.told.count("clean")
    before.over()
    for _ in range(3):
        line.submit(keep(care)).result(SOON)
    assert care.told.count("clean") == cleaned


@pytest.mark.usefixtures("patient")
def test_a_new_line_leaves_kept_things_alone_where_it_can(
    make: Callable[..., Lanes], care: Holding
) -> None:
    """Of two free lanes it takes the one that keeps nothing."""
    lanes = make(2)
    first = Line(lanes, "GET /a")
    gate = Gate()
    running = first.submit(lambda: (gate(), keep(care)())[1])
    assert gate.begun.wait(SOON)
    other = Line(lanes, "GET /b").submit(me).result(SOON)
    gate.go.set()
    home = running.result(SOON)
    assert Line(lanes, "GET /c").submit(me).result(SOON) is other is not home


def test_the_lane_that_was_used_last_is_taken_first(make: Callable[..., Lanes]) -> None:
    """Few stay warm, and the connections of the others can grow old."""
    lanes = make(2)
    gates = [Gate(), Gate()]
    running = [Line(lanes, f"GET /{i}").submit(gate) for i, gate in enumerate(gates)]
    assert all(gate.begun.wait(SOON) for gate in gates)
    for gate, future in zip(gates, running, strict=True):
        gate.go.set()
        last = future.result(SOON)
    for i in range(3):
        assert Line(lanes, f"GET /next/{i}").submit(me).result(SOON) is last


def test_who_comes_back_to_its_lane_goes_before_who_is_new(make: Callable[..., Lanes]) -> None:
    """What was begun gets done first, also when its next call comes later."""
    lanes = make(1)
    begun = Line(lanes, "GET /begun")
    begun.submit(me).result(SOON)
    gate = Gate()
    blocks = Line(lanes, "GET /slow").submit(gate)
    assert gate.begun.wait(SOON)
    ran: list[str] = []
    futures: list[Future[object]] = [Line(lanes, "GET /new").submit(ran.append, "new")]
    futures.append(begun.submit(ran.append, "begun"))
    gate.go.set()
    wait([blocks, *futures], SOON)
    assert ran == ["begun", "new"]


def test_who_knows_only_a_held_lane_waits_for_any(
    make: Callable[..., Lanes], care: Holding
) -> None:
    """In its turn: nobody knows for how long a transaction takes."""
    lanes = make(2)
    line = Line(lanes, "GET /a")
    home = line.submit(me).result(SOON)
    holder = Line(lanes, "POST /holds")
    assert holder.submit(held(care, "a transaction is open")).result(SOON) is home
    gate = Gate()
    blocks = Line(lanes, "GET /slow").submit(gate)
    assert gate.begun.wait(SOON)
    ran: list[str] = []
    futures = [line.submit(ran.append, "first")]
    futures += [Line(lanes, f"GET /{i}").submit(ran.append, "later") for i in range(3)]
    gate.go.set()
    wait([blocks, *futures], SOON)
    assert ran[0] == "first"
    holder.submit(held(care, None)).result(SOON)


# -- what comes late or breaks --------------------------------------------------------------------


def test_a_call_that_comes_late_wakes_nobody_wrongly(
    make: Callable[..., Lanes], care: Holding
) -> None:
    """A lane that is told of a line which another one serves by now, or which is done, goes on."""
    lanes = make(2)
    line = Line(lanes, "GET /a")
    gate = Gate()
    running = line.submit(gate)
    queued = line.submit(me)
    assert gate.begun.wait(SOON)
    other = Line(lanes, "GET /b")
    other.submit(held(care, "a transaction is open")).result(SOON)
    second = lanes.lanes[1]
    second.inbox.put(line)  # of the first lane
    second.inbox.put(other)  # with nothing to do
    eventually(second.inbox.empty)
    assert other.submit(held(care, None)).result(SOON) is second.thread
    assert not queued.done()
    gate.go.set()
    assert queued.result(SOON) is running.result(SOON)


def test_a_call_that_a_look_finds_makes_its_lane_busy(
    make: Callable[..., Lanes], care: Holding
) -> None:
    """A look may come between a call and its waking: people are told what is true then, too."""
    lanes = make(1)
    line = Line(lanes, "POST /")
    line.submit(held(care, "a transaction is open")).result(SOON)
    gate = Gate()
    future: Future[object] = Future()
    line.jobs.append((future, gate, (), {}))
    lanes.lanes[0].inbox.put(lanes_module._LOOK)
    assert gate.begun.wait(SOON)
    assert lanes.describe()[0]["state"] == "busy"
    gate.go.set()
    assert future.result(SOON)
    line.submit(held(care, None)).result(SOON)


def test_a_lane_is_free_before_the_result_is_out(
    make: Callable[..., Lanes], care: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has its answer finds the connection given back, and its transaction noticed."""
    gate = Gate()
    monkeypatch.setattr(care, "rest", lambda: bool(gate()) and False)
    line = Line(make(1), "GET /")
    for job in (int, "".index):
        future: Future[object] = line.submit(job, "7")
        assert gate.begun.wait(SOON)
        assert not future.done()
        gate.go.set()
        future.exception(SOON)
        gate.begun.clear()
        gate.go.clear()
    gate.go.set()


@pytest.mark.parametrize("broken", ["held", "rest", "clean"])
def test_a_lane_gets_over_connections_that_cannot_be_asked(
    make: Callable[..., Lanes],
    care: Holding,
    broken: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The result comes, what the thread has is dropped by force, the log says so, others go on."""
    forced = []
    clean = care.clean

    def breaks(*, force: bool = False) -> bool:
        raise RuntimeError("the connection is broken")

    def noted(*, force: bool = False) -> None:
        forced.append(force)
        clean(force=force)

    monkeypatch.setattr(care, "clean", noted)
    monkeypatch.setattr(care, broken, breaks)
    lanes = make(1)
    for i in range(3):
        assert Line(lanes, f"GET /{i}").submit(str, i).result(SOON) == str(i)
    assert [lane["state"] for lane in lanes.describe()] == ["free"]
    assert "lane 1 could not" in caplog.text and "the connection is broken" in caplog.text
    assert broken == "clean" or True in forced


def test_what_is_held_at_the_end_is_dropped(make: Callable[..., Lanes], care: Holding) -> None:
    """A worker that ends leaves no transaction open."""
    lanes = make(1)
    Line(lanes, "POST /").submit(held(care, "a transaction is open")).result(SOON)
    lanes.close(SOON)
    assert care.told[-2:] == ["clean, force", "end"]


def test_a_lane_that_cannot_close_ends_all_the_same(
    make: Callable[..., Lanes],
    care: Holding,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The worker does not wait for it, and the log says what happened."""

    def breaks() -> None:
        raise SystemExit("no more")

    monkeypatch.setattr(care, "end", breaks)
    lanes = make(1)
    Line(lanes, "GET /").submit(me).result(SOON)
    lanes.close(SOON)
    assert lanes.lanes[0].ended.is_set()
    assert "lane 1 could not close what it has" in caplog.text


def test_nothing_of_the_request_is_kept_for_what_outlives_it(make: Callable[..., Lanes]) -> None:
    """A task that outlives its request has its line, which knows the request by name only."""

    class Request:
        name = "GET /"

    request = Request()
    line = Line(make(1), request)
    ref = weakref.ref(request)
    line.over()
    del request
    assert ref() is None
    assert line.name == "GET /"


# -- who goes before whom ------------------------------------------------------------------------


def test_a_line_with_much_to_do_gives_way_to_who_knows_its_lane(
    make: Callable[..., Lanes],
) -> None:
    """Not only to new lines: the next call of another request is not behind all of its calls."""
    lanes = make(1)
    other, busy = Line(lanes, "GET /other"), Line(lanes, "GET /busy")
    other.submit(me).result(SOON)
    gate = Gate()
    ran: list[str] = []
    futures: list[Future[object]] = [busy.submit(gate)]
    assert gate.begun.wait(SOON)
    futures += [busy.submit(ran.append, "busy") for _ in range(20)]
    futures.append(other.submit(ran.append, "other"))
    gate.go.set()
    wait(futures, SOON)
    assert ran.index("other") == 0


def test_new_lines_do_not_push_back_what_was_begun(make: Callable[..., Lanes]) -> None:
    """After each new line, what was begun has its turns again."""
    lanes = make(1)
    busy = Line(lanes, "GET /busy")
    gate = Gate()
    ran: list[str] = []
    futures: list[Future[object]] = [busy.submit(gate)]
    assert gate.begun.wait(SOON)
    futures += [busy.submit(ran.append, "busy") for _ in range(4 * TURNS)]
    futures += [Line(lanes, f"GET /{i}").submit(ran.append, "new") for i in range(3)]
    gate.go.set()
    wait(futures, SOON)
    assert [i for i, name in enumerate(ran) if name == "new"] == [
        TURNS,
        2 * TURNS + 1,
        3 * TURNS + 2,
    ]


def test_who_waits_for_a_lane_that_becomes_held_waits_for_any(
    make: Callable[..., Lanes], care: Holding
) -> None:
    """In the order in which they came, and before lines that are new."""
    lanes = make(2)
    gates = [Gate(), Gate()]
    begun = [Line(lanes, "GET /a"), Line(lanes, "GET /b")]
    for line in begun:
        line.submit(me).result(SOON)  # both in the first lane
    holder = Line(lanes, "POST /holds")
    holds = holder.submit(lambda: (gates[0](), held(care, "a transaction is open")()))
    assert gates[0].begun.wait(SOON)
    blocks = Line(lanes, "GET /slow").submit(gates[1])
    assert gates[1].begun.wait(SOON)
    ran: list[str] = []
    futures = [Line(lanes, "GET /new").submit(ran.append, "new")]
    futures += [line.submit(ran.append, line.name) for line in begun]
    gates[0].go.set()
    holds.result(SOON)
    gates[1].go.set()
    wait([blocks, *futures], SOON)
    assert ran == ["GET /a", "GET /b", "new"]
    holder.submit(held(care, None)).result(SOON)


def test_a_line_waits_once_however_much_it_is_given(make: Callable[..., Lanes]) -> None:
    """Also while it gives way in the middle of its calls: no second lane comes for it."""
    lanes = make(1)
    first, second = Line(lanes, "GET /a"), Line(lanes, "GET /b")
    gates = [Gate(), Gate()]
    ran: list[int] = []
    futures: list[Future[object]] = [first.submit(gates[0])]
    assert gates[0].begun.wait(SOON)
    futures += [first.submit(ran.append, i) for i in range(TURNS + 2)]
    futures.append(second.submit(gates[1]))
    gates[0].go.set()
    assert gates[1].begun.wait(SOON)
    futures.append(first.submit(ran.append, TURNS + 2))
    assert [waiting["by"] for waiting in lanes.waiting()] == ["GET /a"]
    gates[1].go.set()
    wait(futures, SOON)
    assert ran == list(range(TURNS + 3))


def test_what_ends_by_itself_holds_a_lane_no_more(
    make: Callable[..., Lanes], care: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cursor that was thrown away between two calls: a look finds the lane free, once."""
    monkeypatch.setattr(lanes_module, "PARKED", 0.01)
    why: list[str | None] = ["a server-side cursor is open"]
    looks = threading.Semaphore(0)

    def ask() -> str | None:
        looks.release()
        return why[0]

    monkeypatch.setattr(care, "held", ask)
    lanes = make(1)
    Line(lanes, "GET /").submit(me).result(SOON)
    for _ in range(3):
        assert looks.acquire(timeout=SOON)
    assert lanes.describe()[0]["state"] == "held"
    why[0] = None
    eventually(lambda: lanes.describe()[0]["state"] == "free")
    assert lanes.lanes[0].why is None
    assert Line(lanes, "GET /next").submit(me).result(SOON)
    assert lanes._free == lanes.lanes  # once


def test_what_a_job_raises_is_freed_with_its_future(make: Callable[..., Lanes]) -> None:
    """A view that failed leaves nothing to the garbage collector: not its cursors, for one."""

    class Thing:
        pass

    refs: list[weakref.ref[Thing]] = []

    def fails() -> None:
        thing = Thing()
        refs.append(weakref.ref(thing))
        raise ValueError

    line = Line(make(1), "GET /")
    gc.collect()
    gc.disable()
    try:
        assert type(line.submit(fails).exception(SOON)) is ValueError
        line.submit(me).result(SOON)  # the thread has left the job before
        assert refs[0]() is None
    finally:
        gc.enable()


# -- who is given up, and who is not -------------------------------------------------------------


@pytest.mark.usefixtures("patient")
def test_who_waits_makes_lanes_look_at_what_they_hold(
    make: Callable[..., Lanes], care: Holding
) -> None:
    """What is over and held for too long is freed for who waits, not a moment later by itself."""
    lanes = make(1, patience=0.1)
    line = Line(lanes, "POST /left-open")
    line.submit(held(care, "a transaction is open")).result(SOON)
    line.over()
    assert Line(lanes, "GET /next").submit(me).result(SOON)


def test_a_cancelled_call_does_not_keep_others_from_their_timeout(
    make: Callable[..., Lanes],
) -> None:
    """One client has left, others wait: each of them is told."""
    lanes = make(1, timeout=0.2)
    gate = Gate()
    busy = Line(lanes, "GET /slow").submit(gate)
    assert gate.begun.wait(SOON)
    line = Line(lanes, "GET /late")
    left, stays = line.submit(me), line.submit(me)
    assert left.cancel()
    other = Line(lanes, "GET /other").submit(me)
    for future in (stays, other):
        with pytest.raises(LaneTimeout):
            future.result(SOON)
    gate.go.set()
    busy.result(SOON)


def asked(line: Asked, answer: bool) -> threading.Event:
    """Set when somebody wants to know whether this process has made the request."""
    event = threading.Event()

    def made_here() -> bool:
        event.set()
        return answer

    line.answer = made_here
    return event


@pytest.mark.parametrize(("size", "own"), [(1, 0), (2, 1)])
def test_waiting_is_no_deadlock_while_a_lane_may_become_free(
    make: Callable[..., Lanes], monkeypatch: pytest.MonkeyPatch, size: int, own: int
) -> None:
    """Slow requests, and fewer of the own ones than lanes: everybody gets through."""
    monkeypatch.setattr(lanes_module, "LOOK", 0.02)
    lanes = make(size, timeout=60)
    gates = [Gate() for _ in range(size)]
    busy = [Line(lanes, f"GET /slow/{i}").submit(gate) for i, gate in enumerate(gates)]
    assert all(gate.begun.wait(SOON) for gate in gates)
    futures = []
    for i in range(3):
        line = Asked(lanes, f"GET /{i}")
        looked = asked(line, i < own)
        futures.append(line.submit(me))
        assert looked.wait(SOON)  # so those before were judged with it
    assert not any(future.done() for future in futures)
    for gate in gates:
        gate.go.set()
    for future in (*busy, *futures):
        assert future.result(SOON)


def test_a_request_to_the_own_server_may_wait_for_a_moment(
    make: Callable[..., Lanes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only who has waited for a while is suspected."""
    monkeypatch.setattr(lanes_module, "LOOK", 3600.0)
    lanes = make(1, timeout=7200)
    gate = Gate()
    busy = Line(lanes, "GET /slow").submit(gate)
    assert gate.begun.wait(SOON)
    line = Asked(lanes, "GET /inner")
    line.answer = lambda: True
    future = line.submit(me)
    assert lanes._look()
    gate.go.set()
    assert future.result(SOON) and busy.result(SOON)


def test_who_gets_a_lane_in_that_very_moment_is_not_given_up(
    make: Callable[..., Lanes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To find out who has made a request takes a while, and lanes go on meanwhile."""
    monkeypatch.setattr(lanes_module, "LOOK", 0.02)
    lanes = make(1, timeout=60)
    first, second = Gate(), Gate()
    busy = Line(lanes, "GET /slow").submit(first)
    assert first.begun.wait(SOON)
    line = Asked(lanes, "GET /inner")
    judged = threading.Event()

    def made_here() -> bool:
        first.go.set()
        assert second.begun.wait(SOON)
        judged.set()
        return True

    line.answer = made_here
    futures: list[Future[object]] = [line.submit(second), line.submit(str, "queued")]
    assert judged.wait(SOON)
    other = Asked(lanes, "GET /other")
    looked = asked(other, False)
    futures.append(other.submit(me))
    assert looked.wait(SOON)  # the look before is over
    second.go.set()
    assert busy.result(SOON)
    assert [bool(future.result(SOON)) for future in futures] == [True] * 3


# -- ends ----------------------------------------------------------------------------------------


def test_closing_in_a_loop_waits_for_the_lanes_without_blocking_it(
    make: Callable[..., Lanes], care: Holding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their last jobs may need the loop, and what comes after may need them to be over."""
    gate = Gate()
    monkeypatch.setattr(care, "end", gate)
    lanes = make(1)
    Line(lanes, "GET /").submit(me).result(SOON)

    async def main() -> None:
        closing = asyncio.create_task(lanes.aclose())
        assert await asyncio.to_thread(gate.begun.wait, SOON)
        assert not closing.done()
        gate.go.set()
        await asyncio.wait_for(closing, SOON)

    asyncio.run(main())
    assert lanes.lanes[0].ended.is_set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_in_the_middle_of_something_leaves_the_child_able_to_ask(
    make: Callable[..., Lanes],
) -> None:
    """Another thread may be choosing a lane in that moment, and is not there in the child."""
    lanes = make(1)
    Line(lanes, "GET /").submit(me).result(SOON)
    with lanes._lock:
        pid = os.fork()
        if pid == 0:
            signal.alarm(int(SOON))  # or a child that waits for the lock would stay
            try:
                Line(lanes, "GET /child").submit(me).result(SOON)
            except ClosedError:
                os._exit(0)
            finally:
                os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_one_thread_looks_at_who_waits_and_only_while_somebody_does(
    make: Callable[..., Lanes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends when nobody waits, and there is one again for those who wait later."""
    watched: list[bool] = []
    look_often = Lanes._look_often

    def counted(lanes: Lanes) -> None:
        watched.append(True)
        look_often(lanes)
        watched.append(False)

    monkeypatch.setattr(Lanes, "_look_often", counted)
    lanes = make(1, timeout=0.1)
    gate = Gate()
    busy = Line(lanes, "GET /slow").submit(gate)
    assert gate.begun.wait(SOON)
    for round in range(2):
        late = [Line(lanes, f"GET /{round}/{i}").submit(me) for i in range(3)]
        for future in late:
            with pytest.raises(LaneTimeout):
                future.result(SOON)
        eventually(lambda: not watched[-1])
        assert watched == [True, False] * (round + 1)
    gate.go.set()
    busy.result(SOON)
