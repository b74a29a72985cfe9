"""How a process ends: whatever it is, what is open is closed once, and the exit code stays.

Each test is a real process. Its witness is its standard output, written with ``os.write``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from lifeguard._core import ends
from tests.core.helpers import Log, in_fork, python, start

PRELUDE = """
import asyncio, os, signal, sys, threading
import lifeguard

def say(what):
    os.write(1, f"{what}\\n".encode())

@lifeguard.resource
def db():
    say("open")
    yield 1
    say("close")

@lifeguard.resource
async def adb():
    say("aopen")
    yield 1
    await asyncio.sleep(0)
    say("aclose")

sync = lifeguard.Lifeguard()
sync.resource(db._source)

def use_sync():
    with sync.unit():
        say("work")

async def use_async():
    async with lifeguard.unit():
        say("work")
"""

BOTH = {
    "sync": ("use_sync()", ["open", "work", "close"]),
    "async": ("asyncio.run(use_async())", ["open", "aopen", "work", "aclose", "close"]),
    "stopped loop": (
        "loop = asyncio.new_event_loop(); loop.run_until_complete(use_async())",
        ["open", "aopen", "work", "aclose", "close"],
    ),
}

ENDINGS = {
    "the end of the program": ("pass", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "an exception": ("raise ValueError", 1),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", -signal.SIGINT),
    "SystemExit in a thread": (
        "t = threading.Thread(target=sys.exit); t.start(); t.join(); sys.exit(4)",
        4,
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", BOTH)
def test_a_process_that_ends_closes_what_a_unit_opened(kind: str, ending: str) -> None:
    """Nobody closed the worker: the end of the process does, once, and the exit code stays."""
    use, wanted = BOTH[kind]
    code, status = ENDINGS[ending]
    result = python(f"{PRELUDE}\n{use}\n{code}\n")
    assert result.stdout.split("\n")[:-1] == wanted, result.stderr
    assert result.returncode == status


def test_os_exit_runs_nothing() -> None:
    """Who asks for that gets it."""
    result = python(f"{PRELUDE}\nuse_sync()\nos._exit(5)\n")
    assert result.stdout.split() == ["open", "work"]
    assert result.returncode == 5


def test_a_worker_that_was_closed_is_not_closed_again() -> None:
    """The end of the process finds nothing to do after a `with`."""
    result = python(f"{PRELUDE}\nwith sync.worker():\n    use_sync()\nsay('end')\n")
    assert result.stdout.split() == ["open", "work", "close", "end"]


def test_workers_end_last_opened_first() -> None:
    """Several guards in one process: like everything else, in the reverse order."""
    result = python(
        f"""{PRELUDE}
def named(name):
    def source():
        say(f"open {{name}}")
        yield 1
        say(f"close {{name}}")
    return source
guards = [lifeguard.Lifeguard() for _ in range(3)]
for number, guard in enumerate(guards):
    guard.resource(named(number))
    with guard.unit():
        pass
"""
    )
    events = ["open 0", "open 1", "open 2", "close 2", "close 1", "close 0"]
    assert result.stdout.split("\n")[:-1] == events


def test_an_exit_that_raises_at_the_end_is_logged_and_changes_nothing() -> None:
    """The rest closes, the exit code stays, and the log says what went wrong."""
    result = python(
        f"""{PRELUDE}
@sync.resource
def broken():
    yield 1
    raise ValueError("broken at the end")
use_sync()
sys.exit(3)
"""
    )
    assert result.stdout.split() == ["open", "work", "close"]
    assert result.returncode == 3
    assert "broken at the end" in result.stderr


def test_the_end_does_not_wait_longer_than_the_grace_for_a_unit() -> None:
    """A daemon thread that never ends its unit is named and given up."""
    result = python(
        f"""{PRELUDE}
sync.grace = 0.2
inside = threading.Event()
def hang():
    with sync.unit("hangs"):
        inside.set()
        threading.Event().wait()
threading.Thread(target=hang, daemon=True).start()
inside.wait()
"""
    )
    assert result.stdout.split() == ["open", "close"]
    assert result.returncode == 0
    assert "unit 'hangs' is still running" in result.stderr


# -- SIGTERM --------------------------------------------------------------------------------------

WAIT = """
try:
    say("ready")
    sys.stdin.read()
finally:
    say("finally")
"""


def terminated(code: str, wanted: int | None, *, path: Path | None = None) -> list[str]:
    """What a process says that gets a SIGTERM once it is ready."""
    with start(f"{PRELUDE}\n{code}", path=path) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.strip())
            if line == "ready\n":
                break
        else:
            pytest.fail(f"it ended before it was ready: {lines} {process.communicate()}")
        process.send_signal(signal.SIGTERM)
        try:
            out, err = process.communicate(timeout=90)
        finally:
            process.kill()
    assert process.returncode == wanted, err
    return [*lines, *out.split()]


def test_a_sigterm_that_nobody_handles_unwinds_the_program() -> None:
    """`finally` runs, the worker closes, and the process still dies of the signal."""
    events = terminated(f"block = sync.worker(); block.__enter__()\n{WAIT}", -signal.SIGTERM)
    assert events == ["open", "ready", "finally", "close"]


def test_a_sigterm_ends_a_with_block_in_order() -> None:
    """Units first, then the worker, as with any other exception."""
    events = terminated(
        """
with sync.worker():
    with sync.unit():
        sync.callback(say, "unit")
        say("ready")
        sys.stdin.read()
""",
        -signal.SIGTERM,
    )
    assert events == ["open", "ready", "unit", "close"]


def test_a_sigterm_unwinds_an_async_program() -> None:
    """The loop ends its tasks, and the worker closes on it."""
    events = terminated(
        """
async def main():
    async with lifeguard.worker():
        async with lifeguard.unit():
            lifeguard.callback(say, "unit")
            say("ready")
            await asyncio.sleep(30)
asyncio.run(main())
""",
        -signal.SIGTERM,
    )
    assert events == ["open", "aopen", "ready", "unit", "aclose", "close"]


def test_a_wrapped_app_takes_sigterm_at_import() -> None:
    """wrap() is called in the main thread while the app is imported: the only time it can be."""
    events = terminated(
        f"""
def app(environ, start_response):
    start_response("200 OK", [])
    return [b""]
app = sync.wrap(app)
list(app({{}}, lambda *args: None))
{WAIT}""",
        -signal.SIGTERM,
    )
    assert events == ["open", "ready", "finally", "close"]


def test_a_handler_of_the_users_own_stays() -> None:
    """Only SIG_DFL is replaced: whoever handles SIGTERM goes on doing so, and exits as before."""
    events = terminated(
        f"""
def mine(signum, frame):
    say("mine")
    sys.exit(9)
signal.signal(signal.SIGTERM, mine)
sync.worker().__enter__()
assert signal.getsignal(signal.SIGTERM) is mine
{WAIT}""",
        9,
    )
    assert events == ["open", "ready", "mine", "finally", "close"]


def test_a_handler_set_later_stays() -> None:
    """A server that installs its own after the app was imported replaces this one."""
    events = terminated(
        f"""
sync.worker().__enter__()
signal.signal(signal.SIGTERM, lambda signum, frame: os._exit(9))
{WAIT}""",
        9,
    )
    assert events == ["open", "ready"]


def test_an_ignored_sigterm_stays_ignored() -> None:
    """SIG_IGN is a decision as well."""
    events = terminated(
        """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with sync.worker():
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    say("ready")
    sys.stdin.readline()
""",
        0,
    )
    assert events == ["open", "ready", "close"]


def test_sigterm_can_be_left_alone() -> None:
    """handle_sigterm=False: the process dies on the spot, as it did before."""
    events = terminated(
        f"""
guard = lifeguard.Lifeguard(handle_sigterm=False)
guard.resource(db._source)
guard.worker().__enter__()
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
{WAIT}""",
        -signal.SIGTERM,
    )
    assert events == ["open", "ready"]


def test_a_third_sigterm_ends_a_clean_up_that_hangs() -> None:
    """The first one unwinds, the second one has no patience; the next has its usual meaning."""
    events = terminated(
        """
@sync.resource
def hangs():
    yield 1
    say("hangs")
    os.kill(os.getpid(), signal.SIGTERM)
    say("still")
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait()
with sync.worker():
    say("ready")
    sys.stdin.read()
""",
        -signal.SIGTERM,
    )
    assert events == ["open", "ready", "hangs", "still"]


def test_a_second_sigterm_on_the_way_to_the_clean_up_does_not_prevent_it() -> None:
    """hypercorn's master sends two within a millisecond. What is open is closed all the same."""
    events = terminated(
        """
sync.worker().__enter__()
say("ready")
try:
    sys.stdin.read()
finally:
    os.kill(os.getpid(), signal.SIGTERM)
""",
        -signal.SIGTERM,
    )
    assert events == ["open", "ready", "close"]


UNIT = """
from lifeguard._core import ends
inside, waiting = threading.Event(), threading.Event()

def hang():
    with sync.unit("hangs"):
        inside.set()
        while not ends._waits:  # the worker waits for this very unit
            pass
        say("ready")
        threading.Event().wait()

sync.grace = 60
threading.Thread(target=hang, daemon=True).start()
inside.wait()
"""


def test_a_second_sigterm_cuts_the_wait_for_units_short() -> None:
    """The first one lets units end, within the grace. Whoever sends another wants the end now:
    what is open is closed all the same, and the log says whose time was cut."""
    wrapped = "sync.wrap(lambda environ, start_response: [])"
    code = f"{PRELUDE}\n{wrapped}\n{UNIT}\nos.kill(os.getpid(), signal.SIGTERM)\n"
    with start(code) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(2)]
        assert lines == ["open", "ready"]  # the first signal has come, and it waits
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=90)
    assert out.split() == ["close"], err
    assert process.returncode == -signal.SIGTERM
    assert "unit 'hangs' is still running" in err
    assert "its grace was cut short" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_cuts_it_short_beside_a_handler_of_the_users_own(
    number: signal.Signals,
) -> None:
    """A server has handlers of its own. They are called as before, and are in place afterwards."""
    code = f"""
signal.signal({number:d}, lambda signum, frame: say("theirs"))
theirs = signal.getsignal({number:d})
block = sync.worker()
block.__enter__()
{UNIT}
os.kill(os.getpid(), {number:d})
block.__exit__(None, None, None)
assert signal.getsignal({number:d}) is theirs
"""
    with start(f"{PRELUDE}\n{code}") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(3)]
        assert lines == ["open", "theirs", "ready"]
        process.send_signal(number)
        out, err = process.communicate(timeout=90)
    assert out.split() == ["theirs", "close"], err
    assert process.returncode == 0


def test_a_second_signal_wakes_a_loop_that_waits() -> None:
    """The same in a program that asyncio runs, whose loop sleeps when the signal comes."""
    code = """
from lifeguard._core import ends

async def hang():
    async with lifeguard.unit("hangs"):
        while not ends._waits:
            await asyncio.sleep(0)
        say("ready")
        await asyncio.Event().wait()

async def main():
    told = asyncio.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())  # as uvicorn does it
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, say, "int")
    async with lifeguard.worker():
        task = asyncio.create_task(hang())
        while not lifeguard._default._worker.running():
            await asyncio.sleep(0)
    task.cancel()

lifeguard._default.grace = 60
asyncio.run(main())
say("end")
"""
    with start(f"{PRELUDE}\n{code}") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(3)]
        assert lines == ["open", "aopen", "ready"]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=90)
    assert out.split() == ["aclose", "close", "end"], err
    assert process.returncode == 0, err
    assert "its grace was cut short" in err


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_first_sigterm_in_the_middle_of_the_clean_up_waits_for_it(kind: str) -> None:
    """The worker closes already, for another reason. The clean-up goes on to its end, which an
    exception out of nowhere would not let it, and then the signal has its effect."""
    pause = "time.sleep(0.05)" if kind == "sync" else "await asyncio.sleep(0.05)"
    prefix = "" if kind == "sync" else "async "
    use = (
        "with lifeguard.worker():\n    pass\nsay('after')"
        if kind == "sync"
        else "async def main():\n    async with lifeguard.worker():\n        pass\n"
        "    say('after')\n    await asyncio.sleep(30)\nasyncio.run(main())"
    )
    code = f"""
import asyncio, os, signal, time
import lifeguard

def say(what):
    os.write(1, f"{{what}}\\n".encode())

@lifeguard.resource
{prefix}def db():
    yield 1
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(3):
        {pause}
    say("closed")

lifeguard.wrap(lambda environ, start_response: [])
{use}
"""
    result = python(code)
    assert result.stdout.split() == ["closed"], result.stderr
    assert result.returncode == -signal.SIGTERM


def test_a_handler_that_calls_the_one_before_it() -> None:
    """Handlers are chained like that. It unwinds as if it had been called itself, and the
    handler that calls it stays in place."""
    events = terminated(
        f"""
block = sync.worker()
block.__enter__()
before = signal.getsignal(signal.SIGTERM)
def mine(signum, frame):
    say("mine")
    before(signum, frame)
signal.signal(signal.SIGTERM, mine)
try:
    {"    ".join(WAIT.strip().splitlines(keepends=True))}
finally:
    assert signal.getsignal(signal.SIGTERM) is mine
""",
        -signal.SIGTERM,
    )
    assert events == ["open", "ready", "mine", "finally", "close"]


def test_sigterm_is_given_back() -> None:
    """After the last block that took it, it is what it was; an app that was wrapped keeps it."""
    result = python(
        f"""{PRELUDE}
def taken():
    return signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL

with sync.worker():
    with sync.worker():
        say(taken())
    say(taken())
say(taken())
with sync.worker():
    sync.wrap(lambda environ, start_response: [b""])
say(taken())
"""
    )
    assert result.stdout.split() == [
        "open",
        "True",
        "True",
        "close",
        "False",
        "open",
        "close",
        "True",
    ]


def test_a_sigterm_during_the_opening() -> None:
    """What was open by then is closed again, and what was not is not."""
    events = terminated(
        """
@sync.resource
def slow():
    say("ready")
    threading.Event().wait()
    yield 1
with sync.worker():
    pass
""",
        -signal.SIGTERM,
    )
    assert events == ["open", "ready", "close"]


def test_a_sigterm_during_an_async_opening() -> None:
    """The same where there is a loop."""
    events = terminated(
        """
@lifeguard.resource
async def slow():
    say("ready")
    await asyncio.Event().wait()
    yield 1
async def main():
    async with lifeguard.worker():
        pass
asyncio.run(main())
""",
        -signal.SIGTERM,
    )
    assert events == ["open", "aopen", "ready", "aclose", "close"]


def test_a_child_with_nothing_of_its_own_dies_of_sigterm_as_before() -> None:
    """It inherits the handler, and neither unwinds the parent's blocks nor changes its status."""
    result = python(
        f"""{PRELUDE}
with sync.worker():
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            say("child is ready")
            os.write(writer, b"1")
            while True:
                signal.sigtimedwait([], 0.01)  # not pause(): it could miss the signal
        finally:
            say("child unwinds")
            os._exit(0)
    os.read(reader, 1)
    os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(pid, 0)
    say(f"child ended by signal {{os.WTERMSIG(status)}}")
"""
    )
    assert result.stdout.split("\n")[:-1] == [
        "open",
        "child is ready",
        "child ended by signal 15",
        "close",
    ]
    assert result.returncode == 0


def test_sigterm_is_taken_in_the_main_thread_only() -> None:
    """Elsewhere Python does not let handlers be set: False, and no error."""
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(ends.take_sigterm()))
    thread.start()
    thread.join(10)
    assert answers == [False]


# -- multiprocessing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "method"),
    [
        ("multiprocessing", "fork"),
        ("multiprocessing", "spawn"),
        ("multiprocessing", "forkserver"),
        ("billiard", "fork"),
        ("billiard", "spawn"),
    ],
)
def test_a_child_of_multiprocessing_closes_at_its_end(
    package: str, method: str, tmp_path: Path
) -> None:
    """atexit does not run there; Finalize does. Exit codes stay."""
    result = python(
        f"""{PRELUDE}
import {package} as multiprocessing

def child():
    use_sync()
    sys.exit(7)

if __name__ == "__main__":
    process = multiprocessing.get_context({method!r}).Process(target=child)
    process.start()
    process.join(20)
    say(f"exit code {{process.exitcode}}")
""",
        path=tmp_path / "program.py",
    )
    assert result.stdout.split("\n")[:-1] == ["open", "work", "close", "exit code 7"]


# A child that inherits the parent's handler unwinds by it; one that does not takes its own.
@pytest.mark.parametrize(
    ("method", "before", "status"),
    [
        ("fork", "ends.take_sigterm()", 143),
        ("fork", "pass", -signal.SIGTERM),
        ("spawn", "ends.take_sigterm()", -signal.SIGTERM),
    ],
)
def test_a_child_of_multiprocessing_that_gets_sigterm_closes(
    method: str, before: str, status: int, tmp_path: Path
) -> None:
    """Process.terminate() is a SIGTERM: what the child opened is closed in it."""
    result = python(
        f"""{PRELUDE}
import multiprocessing

def child(ready):
    with sync.worker():
        ready.set()
        threading.Event().wait()

if __name__ == "__main__":
    from lifeguard._core import ends
    {before}
    context = multiprocessing.get_context({method!r})
    ready = context.Event()
    process = context.Process(target=child, args=(ready,))
    process.start()
    assert ready.wait(20)
    process.terminate()
    process.join(20)
    say(f"exit code {{process.exitcode}}")
""",
        path=tmp_path / "program.py",
    )
    lines = result.stdout.split("\n")[:-1]
    assert lines[:2] == ["open", "close"], result.stderr
    assert lines[2] == f"exit code {status}"


# -- the list of what is open ---------------------------------------------------------------------


class Open:
    def __init__(self, log: Log, name: str) -> None:
        self.log = log
        self.name = name

    def end(self) -> None:
        self.log.append(self.name)

    def is_closing(self) -> bool:
        return False


def test_what_was_forgotten_is_not_ended(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered twice counts once, the last comes first, and another pid ends nothing."""
    monkeypatch.setattr(ends, "_open", [])
    monkeypatch.setattr(ends, "_pid", os.getpid())
    a, b, c = Open(log, "a"), Open(log, "b"), Open(log, "c")
    for lifetime in (a, b, c, a):
        ends.register(lifetime)
    ends.forget(b)
    ends.run(os.getpid() + 1)
    assert log == []
    ends.run(os.getpid())
    ends.run(os.getpid())
    assert log == ["a", "c"]


def test_a_child_that_has_opened_nothing_ends_nothing(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a copy of its parent's list, and of the hook that atexit calls at its end. A task
    queue's child calls for the end of its own process besides."""
    monkeypatch.setattr(ends, "_open", [])
    monkeypatch.setattr(ends, "_pid", parent := os.getpid())
    opened = Open(log, "the parent's")
    ends.register(opened)

    def child(pid: int | None) -> Log:
        ends.run(pid or os.getpid())
        return log

    assert in_fork(lambda: child(parent)) == []
    assert in_fork(lambda: child(None)) == []
    ends.run(parent)
    assert log == ["the parent's"]


def test_what_asks_to_be_the_last_ends_after_all_others(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool looks after itself when its worker had its turn, whenever it was registered."""
    monkeypatch.setattr(ends, "_open", [])
    monkeypatch.setattr(ends, "_pid", os.getpid())
    first, pool, worker = Open(log, "first"), Open(log, "pool"), Open(log, "worker")
    ends.register(first)
    ends.register(pool, last=True)
    ends.register(worker)
    ends.run(os.getpid())
    assert log == ["worker", "first", "pool"]


def test_what_is_gone_is_not_ended(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept alive for its end."""
    monkeypatch.setattr(ends, "_open", [])
    monkeypatch.setattr(ends, "_pid", os.getpid())
    ends.register(Open(log, "gone"))
    kept = Open(log, "kept")
    ends.register(kept)
    ends.run(os.getpid())
    assert log == ["kept"]
    assert sys.getrefcount(kept) == 2


# -- a worker that is just opening ----------------------------------------------------------------


def test_a_process_that_ends_while_a_thread_opens_the_worker() -> None:
    """The end waits for the opening, and closes what it opened."""
    result = python(
        f"""{PRELUDE}
going, go = threading.Event(), threading.Event()
@sync.resource
def slow():
    going.set()
    go.wait()
    say("slow open")
    yield 1
    say("slow close")
threading.Thread(target=use_sync, daemon=True).start()
going.wait()
import atexit
atexit.register(go.set)
"""
    )
    events = [line for line in result.stdout.split("\n")[:-1] if line != "work"]
    assert events == ["open", "slow open", "slow close", "close"], result.stderr


def test_a_process_that_ends_while_a_thread_opens_for_ever() -> None:
    """After the grace it closes what is open by then."""
    result = python(
        f"""{PRELUDE}
sync.grace = 0.2
going = threading.Event()
@sync.resource
def slow():
    going.set()
    threading.Event().wait()
    yield 1
threading.Thread(target=use_sync, daemon=True).start()
going.wait()
"""
    )
    assert result.stdout.split("\n")[:-1] == ["open", "close"], result.stderr
    assert result.returncode == 0


def test_a_loop_that_was_stopped_in_the_middle_of_the_opening() -> None:
    """The opening is cancelled, on that loop, and what it had opened is closed there."""
    result = python(
        f"""{PRELUDE}
loop = asyncio.new_event_loop()
@lifeguard.resource
async def slow():
    loop.stop()
    await asyncio.sleep(0.01)
    say("slow open")
    await asyncio.Event().wait()
    yield 1
task = loop.create_task(use_async())
loop.run_forever()
"""
    )
    lines = result.stdout.split("\n")[:-1]
    assert [line for line in lines if line != "slow open"] == ["open", "aopen", "aclose", "close"]
