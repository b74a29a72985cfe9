"""What the tests of the core share: things that log, races, forks and fresh interpreters.

Only plain pytest is needed: no database, no server.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import anyio

ROOT = Path(__file__).parent.parent.parent

BACKENDS = ("asyncio", "uvloop", "trio")

Log = list[str]


def run(backend: str, main: Callable[[], Awaitable[Any]]) -> Any:
    """Run *main* on asyncio, uvloop or trio."""
    if backend == "trio":
        return anyio.run(main, backend="trio")
    return anyio.run(main, backend="asyncio", backend_options={"use_uvloop": backend == "uvloop"})


class Door:
    """A context manager that logs, and raises where it is told to."""

    def __init__(
        self,
        log: Log,
        name: str,
        *,
        enter: BaseException | None = None,
        leave: BaseException | None = None,
    ) -> None:
        self.log = log
        self.name = name
        self.enter_raises = enter
        self.leave_raises = leave

    def _go_in(self) -> Any:
        self.log.append(f"enter {self.name}")
        if self.enter_raises is not None:
            raise self.enter_raises
        return self.name

    def _go_out(self, exc: BaseException | None) -> None:
        self.log.append(f"exit {self.name}" + (f" with {exc!r}" if exc is not None else ""))
        if self.leave_raises is not None:
            raise self.leave_raises

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


class SyncDoor(Door):
    def __enter__(self) -> Any:
        return self._go_in()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._go_out(exc)


class AsyncDoor(Door):
    async def __aenter__(self) -> Any:
        await anyio.lowlevel.checkpoint()
        return self._go_in()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await anyio.lowlevel.checkpoint()
        self._go_out(exc)


def define(guard: Any, log: Log, name: str, *, leave: BaseException | None = None) -> Any:
    """A sync resource of *guard* that logs."""

    def source() -> Iterator[str]:
        log.append(f"open {name}")
        yield name
        log.append(f"close {name}")
        if leave is not None:
            raise leave

    source.__name__ = name
    return guard.resource(source)


def adefine(guard: Any, log: Log, name: str, *, leave: BaseException | None = None) -> Any:
    """An async resource of *guard* that logs."""

    async def source() -> AsyncIterator[str]:
        await anyio.lowlevel.checkpoint()
        log.append(f"open {name}")
        yield name
        await anyio.lowlevel.checkpoint()
        log.append(f"close {name}")
        if leave is not None:
            raise leave

    source.__name__ = name
    return guard.resource(source)


def race(racers: list[Callable[[], object]], *, within: float = 20.0) -> list[BaseException]:
    """Run *racers* in a thread each, released together. What they raised."""
    barrier = threading.Barrier(len(racers))
    errors: list[BaseException] = []

    def go(racer: Callable[[], object]) -> None:
        barrier.wait(within)
        try:
            racer()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=go, args=(racer,)) for racer in racers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(within)
        assert not thread.is_alive(), "a racer hangs"
    return errors


@contextlib.contextmanager
def switching_often() -> Iterator[None]:
    """Let threads take turns so often that a race without a lock is lost within some rounds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def in_fork(child: Callable[[], Any], *, seconds: int = 15) -> Any:
    """What *child* returns in a forked child of this process, brought back through a pipe.

    A child that hangs is ended by its own alarm, and that fails the test.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Forking while threads run is what some of these tests are about.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:  # pragma: no cover
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            try:
                answer = {"value": child()}
            except BaseException:
                answer = {"error": traceback.format_exc()}
            os.write(writer, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with status {status} (14: it hung)"
    answer = json.loads(data)
    assert "error" not in answer, answer["error"]
    return answer["value"]


def start(code: str, *args: str, path: Path | None = None) -> subprocess.Popen[str]:
    """Start *code* in a fresh interpreter, which finds the same lifeguard as this one.

    With *path* it is written there first, so that a spawned child of it can import it again.
    """
    code = textwrap.dedent(code)
    command = [sys.executable, "-c", code]
    if path is not None:
        path.write_text(code)
        command = [sys.executable, str(path)]
    return subprocess.Popen(
        [*command, *args],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def python(
    code: str, *args: str, timeout: float = 30.0, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run *code* like :func:`start` to its end."""
    with start(code, *args, path=path) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
    return subprocess.CompletedProcess(args, process.returncode, out, err)


def told(error: BaseException) -> str:
    """Everything a person reads of *error*: the message and the notes."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])
