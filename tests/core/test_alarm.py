"""Exits that block: each costs its budget, is named, and keeps nobody from ending.

In processes of their own: pytest-timeout has SIGALRM here.
"""

from __future__ import annotations

import pytest

from tests.core.helpers import python
from tests.core.test_ends import PRELUDE

HANG = """
def hangs(name, how=lambda: threading.Event().wait()):
    def source():
        say(f"open {name}")
        yield name
        how()
        say("never")
    source.__name__ = name
    return source
"""


def run(code: str) -> tuple[list[str], str, int]:
    result = python(f"{PRELUDE}\n{HANG}\n{code}")
    return result.stdout.split("\n")[:-1], result.stderr, result.returncode


@pytest.mark.parametrize(
    "how",
    [
        "lambda: threading.Event().wait()",
        "lambda: threading.Lock().acquire() and hold.acquire()",
        "lambda: __import__('time').sleep(60)",
        "lambda pair=__import__('socket').socketpair(): pair[0].recv(1)",
    ],
)
def test_an_exit_that_blocks_at_the_end_of_the_process(how: str) -> None:
    """It is interrupted where it hangs, and named; what was opened before it closes; the exit
    code stays."""
    out, err, status = run(
        f"""
hold = threading.Lock(); hold.acquire()
sync.grace = 0.3
sync.resource(hangs("stuck", {how}))
use_sync()
sys.exit(3)
"""
    )
    assert out == ["open", "open stuck", "work", "close"]
    assert status == 3
    assert "closing resource 'stuck' (made at " in err
    assert "did not end within" in err
    assert "was interrupted at" in err


def test_one_that_hangs_leaves_time_for_the_others() -> None:
    """All of them share the grace, and who comes late gets a tenth of it."""
    out, err, _ = run(
        """
sync.grace = 1
for name in ("first", "second", "third"):
    sync.resource(hangs(name))
use_sync()
"""
    )
    assert out == ["open", "open first", "open second", "open third", "work", "close"]
    assert "'third' (made at" in err
    assert "did not end within 1 seconds" in err
    assert err.count("did not end within 0.1 seconds") >= 2


def test_a_block_raises_what_it_interrupted() -> None:
    """`with worker()` tells with an exception which exit hung."""
    out, _err, _ = run(
        """
sync.grace = 0.2
sync.resource(hangs("stuck"))
try:
    with sync.worker():
        pass
except lifeguard.CloseErrors as exc:
    say(type(exc.exceptions[0]).__name__)
say(signal.getsignal(signal.SIGALRM) is signal.SIG_DFL)
"""
    )
    assert out == ["open", "open stuck", "close", "TimeoutError", "True"]


def test_one_that_blocks_the_event_loop() -> None:
    """A sync exit on a loop would stop the clock of all that is awaited. It is interrupted."""
    out, err, _ = run(
        """
lifeguard._default.grace = 0.3
lifeguard.resource(hangs("stuck"))
async def main():
    async with lifeguard.worker():
        say("work")
try:
    asyncio.run(main())
except lifeguard.CloseErrors as exc:
    say(exc.exceptions[0])
"""
    )
    assert out[:4] == ["open", "aopen", "open stuck", "work"], err
    assert out[4:6] == ["aclose", "close"]
    assert out[6].startswith("closing resource 'stuck' (made at ")


def test_in_another_thread_it_is_named_at_least() -> None:
    """There Python cannot interrupt. The log says what hangs, and where."""
    out, err, status = run(
        """
sync.grace = 0.2
sync.resource(hangs("stuck"))
def work():
    with sync.worker():
        say("work")
thread = threading.Thread(target=work, daemon=True)
thread.start()
thread.join(2)
say(thread.is_alive())
"""
    )
    assert out == ["open", "open stuck", "work", "True"]
    assert status == 0
    assert "closing resource 'stuck' (made at " in err
    assert "has not ended within 0.2 seconds at " in err
    assert "this is not the main thread" in err


def test_an_alarm_of_the_apps_own_stays() -> None:
    """Whoever uses SIGALRM keeps it: the exit is named instead of interrupted."""
    out, err, _ = run(
        """
sync.grace = 0.2
sync.resource(hangs("stuck", lambda: __import__("time").sleep(1)))
signal.signal(signal.SIGALRM, mine := lambda *_: say("theirs"))
signal.setitimer(signal.ITIMER_REAL, 0.5)
with sync.worker():
    pass
say(signal.getsignal(signal.SIGALRM) is mine)
"""
    )
    assert out == ["open", "open stuck", "theirs", "never", "close", "True"]
    assert "SIGALRM is taken" in err


def test_one_that_cannot_be_interrupted_does_not_keep_the_process() -> None:
    """It swallows every interruption. When all patience is used up the process ends by force,
    and says where every thread was."""
    out, err, status = run(
        """
def deaf():
    while True:
        try:
            threading.Event().wait()
        except BaseException:
            say("swallowed")
sync.grace = 0.1
sync.resource(hangs("stuck", deaf))
use_sync()
"""
    )
    assert out == ["open", "open stuck", "work", "swallowed"]
    assert status == 1
    assert "Timeout" in err
    assert " in deaf" in err


def test_an_exit_that_ends_in_time_leaves_nothing_behind() -> None:
    """A clean-up that ends in time leaves neither an alarm nor a handler behind."""
    out, _err, status = run(
        """
sync.grace = 5
with sync.worker():
    pass
say(signal.getitimer(signal.ITIMER_REAL))
say(signal.getsignal(signal.SIGALRM) is signal.SIG_DFL)
"""
    )
    assert out == ["open", "close", "(0.0, 0.0)", "True"]
    assert status == 0
