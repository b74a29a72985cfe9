"""gunicorn's workers at their ends, with the hook and without it.

One server with one worker each time. What happened in the worker is in the event log, and in
PostgreSQL's own: a connection that nobody said goodbye to is reported there. Apart from the
matrix, which says for every server what holds at every end: this says what the hook repairs, and
that it is the hook.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lifeguard.gunicorn
from lifeguard.testing import Postgres
from tests.servers.harness import Server
from tests.servers.rows import ROWS

GRACEFUL = 4
"""Seconds. The watch begins one second earlier."""
TIMEOUT = 2
HOOK = "-c python:lifeguard.gunicorn"

KINDS = ("sync", "gthread", "uvicorn-worker", "asgi")
LOOPS = KINDS[2:]
WITH_PRELOAD = [*KINDS, *(f"{kind} --preload" for kind in KINDS)]

Start = Callable[..., Server]

_clients: list[socket.socket] = []


@pytest.fixture
def start(pg: Postgres, appname: str, tmp_path: Path) -> Iterator[Start]:
    """Start gunicorn with a worker of this kind, and serve one request."""
    servers: list[Server] = []

    def start(kind: str, options: str = HOOK, graceful: int = GRACEFUL) -> Server:
        name, _, preload = kind.partition(" ")
        [row] = [row for row in ROWS if row.name == f"gunicorn {name}"]
        server = Server(row, tmp_path, pg, appname, graceful=graceful, more=f"{options} {preload}")
        servers.append(server)
        server.start()
        assert server.get("ok", server.new_id()).status_code == 200
        return server

    yield start
    for server in servers:
        server.kill()
    while _clients:
        _clients.pop().close()


@pytest.fixture
def complaints(pg: Postgres) -> Callable[[], list[str]]:
    """What PostgreSQL has logged, since the test began, about clients that were just gone."""
    path = pg.log_path
    assert path is not None, "this test reads PostgreSQL's log: run it without LIFEGUARD_DSN"
    begin = path.stat().st_size

    def complaints() -> list[str]:
        with path.open("rb") as log:
            log.seek(begin)
            lines = log.read().decode(errors="replace").splitlines()
        words = ("unexpected EOF", "connection to client lost", "could not receive data")
        return [line for line in lines if any(word in line for word in words)]

    return complaints


def begin(server: Server, view: str) -> str:
    """A request that runs until its gate is opened, which is never."""
    request = server.new_id()
    _clients.append(server.send(view, request))
    server.wait_for("waiting", request)
    return request


def end(server: Server, number: int) -> float:
    """Send a signal to the master; how long it took to end."""
    began = time.monotonic()
    server.process.send_signal(number)
    server.process.wait(60)
    return time.monotonic() - began


def events(server: Server, request: str) -> list[str]:
    return [event.event for event in server.of(request) if event.event != "waiting"]


def closed_once(server: Server) -> bool:
    """Whether what the one worker opened was closed once, and there."""
    opened, closed = server.events.per_pid("opened"), server.events.per_pid("closed")
    assert set(opened.values()) == {1}
    return opened == closed


# -- the graceful timeout -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WITH_PRELOAD)
def test_request_longer_than_the_graceful_timeout(
    kind: str, start: Start, complaints: Callable[[], list[str]]
) -> None:
    """A deployment hits a slow request: the worker closes its pool before it is killed."""
    server = start(kind)
    request = begin(server, "wait")
    end(server, signal.SIGTERM)
    assert closed_once(server), server.tail()
    log = server.log.read_text()  # uvicorn says it itself, where it comes to that
    assert "gunicorn kills it in a moment" in log or "graceful shutdown exceeded" in log
    if not kind.startswith("gthread"):  # a thread cannot be stopped from outside
        assert events(server, request) == ["started", "ended", "finished"]
    assert complaints() == []


@pytest.mark.parametrize("kind", KINDS)
def test_request_longer_than_the_graceful_timeout_without_the_hook(kind: str, start: Start) -> None:
    """The same worker without the hook is killed with its pool open."""
    server = start(kind, options="", graceful=1)
    begin(server, "wait")
    end(server, signal.SIGTERM)
    assert not closed_once(server)


@pytest.mark.parametrize("kind", LOOPS)
def test_loop_blocked_for_longer_than_the_graceful_timeout(
    kind: str, start: Start, complaints: Callable[[], list[str]]
) -> None:
    """The slow request blocks the whole event loop: it is interrupted, and the pool closed."""
    server = start(kind)
    request = begin(server, "block")
    end(server, signal.SIGTERM)
    assert closed_once(server), server.tail()
    assert events(server, request) == ["started", "ended", "finished"]
    assert complaints() == []


@pytest.mark.parametrize("kind", KINDS)
def test_request_shorter_than_the_graceful_timeout(kind: str, start: Start) -> None:
    """A request that ends in time is let alone: the hook costs it nothing."""
    server = start(kind, graceful=8)
    request = begin(server, "wait")
    server.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 10
    while "Handling signal: term" not in server.log.read_text():
        assert time.monotonic() < deadline, server.tail()
        time.sleep(0.01)
    server.open_gate(request)
    server.process.wait(20)
    assert closed_once(server), server.tail()
    assert events(server, request) == ["started", "ended", "finished"]
    assert "gunicorn kills it in a moment" not in server.log.read_text()


# -- a quick stop ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WITH_PRELOAD)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=lambda n: n.name)
def test_quick_stop(
    kind: str, number: signal.Signals, start: Start, complaints: Callable[[], list[str]]
) -> None:
    """Ctrl-C on gunicorn: every worker closes in order, at once."""
    server = start(kind, graceful=30)
    took = end(server, number)
    assert closed_once(server), server.tail()
    # Its own handler of SIGQUIT may wait for a lock that the main thread holds: the hook closes.
    if not kind.startswith("gthread"):
        assert took < 20, server.tail()
    assert complaints() == []


@pytest.mark.parametrize("kind", ["sync", *LOOPS])
def test_quick_stop_of_a_request(
    kind: str, start: Start, complaints: Callable[[], list[str]]
) -> None:
    """Ctrl-C while a request runs: the request ends, once, and then the pool closes."""
    server = start(kind, graceful=30)
    request = begin(server, "wait")
    took = end(server, signal.SIGQUIT)
    assert closed_once(server), server.tail()
    assert events(server, request) == ["started", "ended", "finished"]
    assert took < 20, server.tail()
    assert complaints() == []


def test_quick_stop_without_the_hook(start: Start) -> None:
    """uvicorn-worker without the hook takes no notice of it, and is killed with its pool open."""
    server = start("uvicorn-worker", options="", graceful=1)
    took = end(server, signal.SIGQUIT)
    assert not closed_once(server)
    assert took >= 1


# -- a worker that hangs --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sync", *LOOPS])
def test_worker_timeout(kind: str, start: Start, complaints: Callable[[], list[str]]) -> None:
    """A request hangs for longer than --timeout: it is interrupted, its unit ends, the pool too."""
    server = start(kind, options=f"{HOOK} --timeout {TIMEOUT}")
    request = begin(server, "block")
    [pid] = server.events.per_pid("opened")
    assert server.events.wait_count("closed", 1, timeout=15) == 1, server.tail()
    finished = server.events.wait(lambda found: bool(found), "finished", timeout=5)
    assert finished
    assert events(server, request) == ["started", "ended", "finished"]
    assert server.events.per_pid("closed") == {pid: 1}
    assert complaints() == []


@pytest.mark.parametrize("kind", LOOPS)
def test_worker_timeout_without_the_hook(kind: str, start: Start) -> None:
    """Without the hook such a worker dies with its pool open."""
    server = start(kind, options=f"--timeout {TIMEOUT}")
    begin(server, "block")
    [pid] = server.events.per_pid("opened")
    # The next worker is there, so the one before it is gone.
    pids = server.events.wait(lambda found: len({event.pid for event in found}) > 1, "opened")
    assert {event.pid for event in pids} > {pid}
    assert pid not in server.events.per_pid("closed")


# -- a configuration of one's own -----------------------------------------------------------------


def test_hook_beside_a_hook_of_ones_own(start: Start, tmp_path: Path) -> None:
    """gunicorn.conf.py may have a hook of the same name: it calls ours, as the docs show."""
    conf = tmp_path / "gunicorn.conf.py"
    conf.write_text(
        "import lifeguard.gunicorn\n"
        "def post_worker_init(worker):\n"
        "    lifeguard.gunicorn.post_worker_init(worker)\n"
        "    worker.log.info('the hook of the shop')\n"
    )
    server = start("uvicorn-worker", options=f"-c {conf}")
    end(server, signal.SIGQUIT)
    assert closed_once(server), server.tail()
    assert "the hook of the shop" in server.log.read_text()


def test_hooks_of_ones_own_are_called(start: Start, tmp_path: Path) -> None:
    """worker_abort and worker_int of one's own are called when a worker hangs, once each."""
    conf = tmp_path / "gunicorn.conf.py"
    conf.write_text(
        "from lifeguard.gunicorn import post_worker_init\n"
        "def worker_abort(worker):\n"
        "    worker.log.info('abort hook')\n"
    )
    server = start("asgi", options=f"-c {conf} --timeout {TIMEOUT}")
    begin(server, "block")
    assert server.events.wait_count("closed", 1, timeout=15) == 1, server.tail()
    assert server.log.read_text().count("abort hook") == 1


def test_module_as_a_configuration_sets_nothing_else() -> None:
    """``-c python:lifeguard.gunicorn`` sets the hook. No other name of it is a setting."""
    from gunicorn.config import Config

    settings = set(Config().settings) & set(vars(lifeguard.gunicorn))
    assert settings == {"post_worker_init"}
