"""The safety net: what PostgreSQL is asked to do for a client that cannot close any more.

A worker that is killed in the middle of a query leaves a backend that works on, holds its locks
and counts against ``max_connections``; a frozen or vanished one leaves it for hours. Only the
server can end those, and its settings for that are off by default.

This module knows PostgreSQL and no driver: it says which statements to send, and reads the answers.
It stands apart from the pools so that each of them can use it.

They are sent on a new connection, not with its startup packet: PgBouncer refuses ``options``
there, and PostgreSQL refuses names that its version does not know. ``pg_settings`` says both what
a version knows and what nobody has set, be it by connection string, PGOPTIONS, ALTER ROLE, ALTER
DATABASE or postgresql.conf: only that is touched. It takes the server a millisecond to answer, so
it is asked once per pool and address, and the settings go out in one round trip afterwards.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import unicodedata

from ._core.errors import redact
from ._core.observer import logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Hashable, Iterable, Mapping
    from typing import Any

    Rows = list[tuple[bytes, ...]]

#: A dead client is noticed in half a second, a dead host in a minute, and a transaction that
#: nobody works in ends after five.
DEFAULTS = {
    "client_connection_check_interval": "500ms",  # PostgreSQL 14
    "idle_in_transaction_session_timeout": "5min",
    "tcp_keepalives_idle": "30s",
    "tcp_keepalives_interval": "10s",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "60s",  # PostgreSQL 12
}
#: Set where somebody asks for it: these end what works as it should.
OPTIONAL = ("idle_session_timeout", "lock_timeout", "statement_timeout", "transaction_timeout")
NAME = "application_name"
KNOWN = (NAME, *DEFAULTS, *OPTIONAL)

LONGEST_NAME = 63  # bytes; PostgreSQL cuts the rest off
LONGEST_HOST = 40
ADDRESSES = 16  # remembered per pool: more is a user name that changes with every connection


class Refused(Exception):
    """PostgreSQL answered with an error."""


def check_options(safety_net: Any, name: object) -> None:
    """Raise :exc:`TypeError` or :exc:`ValueError` where one is not what ``Lifeguard`` takes."""
    if name is not None:
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, not {type(name).__name__}")
        if not name.strip():
            raise ValueError("name must not be empty: it is what PostgreSQL calls this app")
    if isinstance(safety_net, bool):
        return
    if not hasattr(safety_net, "items"):
        raise TypeError(
            "safety_net must be True, False, or a mapping of settings such as "
            f"{{'idle_in_transaction_session_timeout': '1min'}}, not {type(safety_net).__name__}"
        )
    for setting, value in safety_net.items():
        if setting not in KNOWN:
            raise ValueError(
                f"safety_net has the key {setting!r}, which is none of {', '.join(KNOWN)}"
            )
        wrong = f"safety_net[{setting!r}] must be a string with its unit, such as '500ms', or None "
        wrong += f"to leave it alone, not {value!r}"
        if value is not None and not isinstance(value, str):
            raise TypeError(wrong)
        if value is not None and not value.strip():
            raise ValueError(wrong)


class Net:
    """The settings for the connections of one pool. *pool* is its name, for the log."""

    def __init__(
        self, pool: str, overrides: Mapping[str, str | None] | bool, name: str | None
    ) -> None:
        self.pool = pool
        self.name = name
        self.settings: dict[str, str | None] = dict(DEFAULTS)
        if not isinstance(overrides, bool):
            self.settings.update(overrides)
        self.settings.setdefault(NAME, "")  # made for each connection: a fork has another pid
        self._unset: dict[Hashable, tuple[str, ...]] = {}
        self._said: set[str] = set()

    def steps(self, address: Hashable, pid: int) -> Generator[bytes, Rows, None]:
        """The statements for a new connection: each is answered by its rows, or by ``Refused``.

        *address* is whatever tells servers and roles apart. *pid* is the backend's as the driver
        was told. A pooler in between tells one of its own, and then nothing is set: another
        client would get it.
        """
        names = self._unset.get(address)
        if names is None:
            try:
                rows = yield self._ask()
            except Refused as exc:
                self._say("its settings cannot be read", exc)
                rows = []
            if rows and int(rows[0][1]) != pid:
                self._say("there is a pooler between this process and PostgreSQL")
                rows = []
            names = self._remember(address, (row[0].decode() for row in rows))
        if not names:
            return
        try:
            yield self._set(names, pid)
        except Refused:
            refused = set()
            for name in names:  # all but the one that it does not like
                try:
                    yield self._set((name,), pid)
                except Refused as exc:
                    refused.add(name)
                    self._say(f"{name} = {self._value(name)!r} was refused", exc)
            self._remember(address, (name for name in names if name not in refused))

    def _remember(self, address: Hashable, names: Iterable[str]) -> tuple[str, ...]:
        if len(self._unset) >= ADDRESSES:
            self._unset.clear()
        found = self._unset[address] = tuple(names)
        return found

    def _ask(self) -> bytes:
        wanted = ", ".join(
            _literal(name) for name, value in self.settings.items() if value is not None
        )
        return (
            "SELECT name, pg_catalog.pg_backend_pid() FROM pg_catalog.pg_settings"
            f" WHERE source = 'default' AND name IN ({wanted})"
        ).encode()

    def _set(self, names: Iterable[str], pid: int) -> bytes:
        calls = ", ".join(
            f"pg_catalog.set_config({_literal(name)}, {_literal(self._value(name))}, false)"
            for name in names
        )
        return f"SELECT {calls} WHERE pg_catalog.pg_backend_pid() = {pid}".encode()

    def _value(self, name: str) -> str:
        return self.settings[name] or (application_name(self.name) if name == NAME else "")

    def _say(self, what: str, exc: Refused | None = None) -> None:
        """Once per pool and reason. A connection works as well without."""
        if what in self._said:
            return
        self._said.add(what)
        log = logger("worker")
        extra = {"lifeguard_pool": self.pool}
        if exc is None:
            log.info(
                "pool %r has no safety net: %s. Set it there, with ALTER ROLE or in "
                "postgresql.conf.",
                self.pool,
                what,
                extra=extra,
            )
        else:
            log.warning(
                "pool %r lacks a part of its safety net: %s (%s). Its connections work all the "
                "same. Give another value or None for it, Lifeguard(safety_net={...}), or switch "
                "it off, safety_net=False.",
                self.pool,
                what,
                redact(str(exc)),
                extra=extra,
            )


# -- names ----------------------------------------------------------------------------------------


def application_name(name: str | None, more: str = "") -> str:
    """``<app>@<host>:<pid>``: whose connection it is. *name* is the app, else the program's."""
    host = _plain(socket.gethostname().partition(".")[0])[-LONGEST_HOST:]  # a pod differs there
    place = f"@{host}:{os.getpid()}{more}"
    return _plain(name or program(sys.argv))[: LONGEST_NAME - len(place)] + place


def program(argv: list[str]) -> str:
    """What was started: ``uvicorn``, ``gunicorn``, the script; for ``python -m x`` it is x."""
    path = argv[0] if argv else ""
    folder, _, last = path.replace("\\", "/").rpartition("/")
    base = re.sub(r"(-script)?\.(py[cwz]?|exe)$", "", last)
    if base == "__main__":
        base = folder.rpartition("/")[2]
    return "python" if base in ("", "-c", "-m", "-") else base


def _plain(text: str) -> str:
    """*text* in ASCII, or PostgreSQL would write ``?`` or ``\\xc3`` for each of its bytes."""
    letters = [c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)]
    return "".join(c if " " <= c <= "~" else "?" for c in letters)


def _literal(text: str) -> str:
    """*text* for SQL, whatever ``standard_conforming_strings`` is."""
    return "E'" + _plain(text).replace("\\", "\\\\").replace("'", "''") + "'"
