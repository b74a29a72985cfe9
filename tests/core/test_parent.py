"""A worker whose parent is gone ends in order, however it was started; nobody else is watched.

Each test is a chain of real processes. This one kills the one in the middle, the parent, with
SIGKILL, and reads what the last one, the worker, has to say.
"""

from __future__ import annotations

import os
import signal
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core.helpers import python, start
from tests.support.eventlog import EventLog

WORKER = """
import os, signal, sys, threading, time
import lifeguard
from tests.support.eventlog import EventLog

log = EventLog.from_env()
guard = lifeguard.Lifeguard(die_with_parent=True, grace=1)

@guard.resource
def db():
    log.write("open", parent=os.getppid())
    yield 1
    log.write("close")

def serve():
    with guard.worker():
        log.write("ready")
        time.sleep(60)
"""

STARTS = {
    "subprocess": """
import subprocess
subprocess.Popen([sys.executable, __file__, "worker"]).wait()
""",
    "fork": """
if os.fork() == 0:
    serve()
    os._exit(0)
os.wait()
""",
    **{
        method: f"""
import multiprocessing
process = multiprocessing.get_context("{method}").Process(target=serve)
process.start()
process.join()
"""
        for method in ("spawn", "forkserver")
    },
    "multiprocessing's fork": """
import multiprocessing
process = multiprocessing.get_context("fork").Process(target=serve)
process.start()
process.join()
""",
}


def program(body: str, worker: str = WORKER) -> str:
    lines = "\n    ".join(body.strip().splitlines())
    return (
        f"{worker}\nif __name__ == '__main__':\n"
        f"    if sys.argv[1:] == ['worker']:\n        serve()\n        sys.exit()\n    {lines}\n"
    )


def is_there(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return status != "Z"


@pytest.fixture
def env(eventlog: EventLog, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LIFEGUARD_EVENTLOG", str(eventlog.path))
    yield
    for event in eventlog.read("open"):
        if is_there(event.pid):
            os.kill(event.pid, signal.SIGKILL)


def orphaned(code: str, eventlog: EventLog, path: Path) -> list[str]:
    """Start the program, kill it when its worker is ready, and wait for what the worker says."""
    with start(code, path=path) as parent:
        assert eventlog.wait_count("ready", 1, timeout=90) == 1, parent.communicate()
        parent.kill()
    eventlog.wait_count("close", 1)
    return [event.event for event in eventlog.read()]


def is_gone(eventlog: EventLog) -> bool:
    pid = eventlog.read("open")[0].pid
    eventlog.wait(lambda _: not is_there(pid))
    return not is_there(pid)


@pytest.mark.usefixtures("env")
@pytest.mark.parametrize("how", STARTS)
def test_a_worker_ends_in_order_when_its_parent_is_killed(
    how: str, eventlog: EventLog, tmp_path: Path
) -> None:
    """What it had open is closed, once, and nothing of it stays behind."""
    path = tmp_path / "program.py"
    assert orphaned(program(STARTS[how]), eventlog, path) == ["open", "ready", "close"]
    assert is_gone(eventlog)


@pytest.mark.usefixtures("env")
def test_without_the_option_it_lives_on(eventlog: EventLog, tmp_path: Path) -> None:
    """As it always was: that is what the option is for."""
    code = program(STARTS["subprocess"], WORKER.replace("die_with_parent=True, ", ""))
    with start(code, path=tmp_path / "program.py") as parent:
        assert eventlog.wait_count("ready", 1, timeout=90) == 1
        parent.kill()
    pid = eventlog.read("open")[0].pid
    mark = f"PPid:\t{parent.pid}\n"
    eventlog.wait(lambda _: mark not in Path(f"/proc/{pid}/status").read_text())
    assert is_there(pid)
    assert eventlog.count("close") == 0


@pytest.mark.usefixtures("env")
def test_a_parent_that_was_gone_before_the_worker_opened(
    eventlog: EventLog, tmp_path: Path
) -> None:
    """The worker learns it when it looks for the first time: forked, it knows who it was."""
    code = program(
        """
parent = os.getpid()
if os.fork() == 0:
    os.kill(parent, signal.SIGKILL)
    while os.getppid() == parent:
        time.sleep(0.001)
    serve()
    os._exit(0)
signal.pause()
"""
    )
    with start(code, path=tmp_path / "program.py"):
        eventlog.wait_count("close", 1)
    events = [event.event for event in eventlog.read()]
    assert (events[0], events[-1]) == ("open", "close")
    assert is_gone(eventlog)


@pytest.mark.usefixtures("env")
def test_an_app_that_is_imported_after_the_fork(eventlog: EventLog, tmp_path: Path) -> None:
    """As under `gunicorn -c python:lifeguard.gunicorn`: the master knows the package, no more."""
    code = f"""
import os
import lifeguard
if os.fork() == 0:
{textwrap.indent(WORKER, "    ")}
    serve()
    os._exit(0)
os.wait()
"""
    assert orphaned(code, eventlog, tmp_path / "program.py") == ["open", "ready", "close"]
    assert is_gone(eventlog)


@pytest.mark.usefixtures("env")
def test_where_the_end_cannot_be_waited_for_it_is_polled(
    eventlog: EventLog, tmp_path: Path
) -> None:
    """Not Linux, or a sandbox without the call."""
    code = program(STARTS["subprocess"], "import os\ndel os.pidfd_open\n" + WORKER)
    assert orphaned(code, eventlog, tmp_path / "program.py") == ["open", "ready", "close"]


@pytest.mark.usefixtures("env")
def test_a_worker_that_does_not_listen_is_closed_and_killed(
    eventlog: EventLog, tmp_path: Path
) -> None:
    """It ignores SIGTERM. After twice its grace it is told to close from outside, and killed."""
    deaf = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    code = program(STARTS["subprocess"], deaf + WORKER.replace("grace=1", "grace=0.1"))
    assert orphaned(code, eventlog, tmp_path / "program.py") == ["open", "ready", "close"]
    assert is_gone(eventlog)


def test_nothing_is_watched_unless_asked_for() -> None:
    """The module is not even loaded, and no thread runs."""
    result = python(
        """
import sys, threading, lifeguard
with lifeguard.worker():
    assert "lifeguard._core.parent" not in sys.modules
    assert len(sys._current_frames()) == 1
"""
    )
    assert result.returncode == 0, result.stderr
