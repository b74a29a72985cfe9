"""Servers that import the app before they fork, and apps that fork in the middle of a request."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from lifeguard.testing import Postgres
from tests.forks.conftest import Program, Start
from tests.support.ports import free_port

APP = "tests.forks.apps.preloaded"
GUNICORN = "-m gunicorn {app} --bind 127.0.0.1:{port} --workers 2 --preload --no-control-socket"
UWSGI = (
    "-c 'import pyuwsgi; pyuwsgi.run()' --http-socket 127.0.0.1:{port} --master --processes 2"
    " --enable-threads --threads 2 --die-on-term --need-app --wsgi {app}"
)
SERVERS = {
    "gunicorn sync": f"{GUNICORN} -k sync|wsgi",
    "gunicorn gthread": f"{GUNICORN} -k gthread --threads 4|wsgi",
    "gunicorn uvicorn-worker": f"{GUNICORN} -k uvicorn_worker.UvicornWorker|asgi",
    "uwsgi": f"{UWSGI} --py-call-uwsgi-fork-hooks|wsgi",
    "uwsgi without Python's hooks": f"{UWSGI}|wsgi",
}
# Without its hooks uWSGI forks without the GIL. Whichever thread of the master has it just then
# keeps it for ever in the worker, which hangs in uwsgi_python_master_fixup, before any of our code.
QUIET = {"uwsgi without Python's hooks": {"APP_QUIET": "1"}}


class Site:
    """A server that listens, and a client that asks it."""

    def __init__(self, program: Program, port: int) -> None:
        self.program = program
        self.port = port

    def get(self, path: str) -> Any:
        response = httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=60, trust_env=False)
        assert response.status_code == 200, f"{response.text}\n{self.program.said()}"
        return response.json()

    def many(self, first: int, count: int) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(8) as executor:
            return list(executor.map(lambda n: self.get(f"/{n}"), range(first, first + count)))


@pytest.fixture
def serve(start: Start) -> Any:
    def serve(server: str, **environ: str) -> Site:
        import shlex

        port = free_port()
        line, kind = SERVERS[server].split("|")
        program = start(*shlex.split(line.format(app=f"{APP}:{kind}", port=port)), **environ)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and program.popen.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return Site(program, port)
            time.sleep(0.02)
        raise AssertionError(f"{server} did not start:\n{program.said()}")

    return serve


@pytest.mark.parametrize("server", SERVERS)
def test_a_pool_that_was_open_before_the_server_forked(
    server: str, serve: Any, pg: Postgres, appname: str
) -> None:
    """Both workers answer rightly, each from backends of its own, none from the master's, whose
    connection is as it was. Each worker says once that the pool was open before the fork."""
    site = serve(server, **QUIET.get(server, {}))
    answers: list[dict[str, Any]] = []
    deadline = time.monotonic() + 60
    while len({answer["pid"] for answer in answers}) < 2 and time.monotonic() < deadline:
        answers += site.many(100 * len(answers), 40)
    assert all(answer["right"] for answer in answers)
    backends: dict[int, set[int]] = {}
    for answer in answers:
        backends.setdefault(answer["pid"], set()).add(answer["backend"])
    assert len(backends) == 2
    (imported,) = site.program.log.read("import")
    first, second = backends.values()
    assert not first & second
    assert imported["backend"] not in first | second
    with pg.connect() as watcher:
        alive = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
        assert watcher.execute(alive, [imported["backend"]]).fetchone() == (1,)

    site.program.popen.send_signal(signal.SIGTERM)
    site.program.wait()
    assert pg.wait_count(0, prefix=appname) == 0
    said = site.program.said()
    assert said.count("was open in process") == 2, said


@pytest.mark.parametrize("server", ["gunicorn sync", "gunicorn gthread", "gunicorn uvicorn-worker"])
def test_a_fork_in_the_middle_of_a_request(
    server: str, serve: Any, pg: Postgres, appname: str
) -> None:
    """The child has a backend of its own; the request's transaction goes on; its callback runs in
    the parent only, once."""
    site = serve(server)
    for number in range(3):
        answer = site.get(f"/fork/{number}")
        assert answer["right"]
        assert answer["backend"] != answer["parents"]
        assert answer["rows"] >= 1
    # A unit may end after its response.
    callbacks = site.program.log.wait(lambda events: len(events) >= 3, "callback")
    assert [event.pid for event in callbacks] == [event["parent"] for event in callbacks]
    assert len(callbacks) == 3
    assert all(answer["right"] for answer in site.many(0, 20))
    site.program.popen.send_signal(signal.SIGTERM)
    site.program.wait()
    assert pg.wait_count(0, prefix=appname) == 0
