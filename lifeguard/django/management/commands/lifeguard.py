"""``manage.py lifeguard``: who holds the connections of the database, and how full it is.

The answer comes from PostgreSQL, so it is about all workers on all hosts. What tells them apart is
``application_name``: ``<name>@<host>:<pid> lane <number>``. Of a query nothing is shown but its
first word, and PostgreSQL is asked for no more than that: the rest may hold somebody's data.
"""

from __future__ import annotations

import json
import re
import time

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, connections
from django.db.backends.base.base import NO_DB_ALIAS
from django.utils.connection import ConnectionDoesNotExist

from ...._core.errors import explain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Mapping
    from typing import Any

    Row = Mapping[str, Any]

NAME = re.compile(r"(?P<name>.*)@(?P<host>[^@:]*):(?P<pid>\d+)(?: lane (?P<lane>\d+))?")

LIMITS = """
SELECT current_database() AS database, current_user AS role,
       current_setting('server_version') AS server_version,
       current_setting('max_connections')::int AS max_connections,
       current_setting('superuser_reserved_connections')::int
       + coalesce(current_setting('reserved_connections', true), '0')::int AS reserved,
       (SELECT count(*) FROM pg_stat_activity WHERE datname IS NOT NULL
        AND coalesce(backend_type, 'client backend') = 'client backend') AS used
"""  # of another role's connection everything is NULL but its database, role, pid and name

CONNECTIONS = r"""
SELECT pid AS backend, application_name, usename AS role, state,
       backend_type IS NULL AS hidden,
       extract(epoch FROM clock_timestamp() - state_change)::float AS state_seconds,
       extract(epoch FROM clock_timestamp() - xact_start)::float AS transaction_seconds,
       CASE WHEN state = 'active' THEN concat_ws(': ', wait_event_type, wait_event) END
           AS waits_for,
       CASE WHEN wait_event_type = 'Lock' THEN pg_blocking_pids(pid) END AS blocked_by,
       CASE WHEN backend_type IS NOT NULL
            THEN upper(substring(query FROM '^\s*([[:alpha:]]+)')) END AS command
  FROM pg_stat_activity
 WHERE datname = current_database()
   AND coalesce(backend_type, 'client backend') = 'client backend' AND pid <> pg_backend_pid()
 ORDER BY application_name, backend_start
"""

COLUMNS = ("lane", "backend", "state", "for", "transaction", "command", "waits for")


class Command(BaseCommand):
    help = "Show which lanes hold which connections of the database, and how many are left."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """What it can be asked."""
        parser.add_argument("--database", default="default", help="alias of the database to ask")
        parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
        parser.add_argument(
            "--watch",
            type=_seconds,
            metavar="SECONDS",
            help="show it again every SECONDS, until Ctrl-C",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Show it once, or until Ctrl-C."""
        self._look(options)
        try:
            while options["watch"]:
                self.stdout.flush()
                time.sleep(options["watch"])
                self._look(options)
        except KeyboardInterrupt:
            return

    def _look(self, options: Row) -> None:
        found = look(options["database"])
        if options["json"]:
            indent = None if options["watch"] else 2  # one line each, for what reads lines
            self.stdout.write(json.dumps(found, indent=indent))
        else:
            self._show(found, options)

    def _show(self, found: Row, options: Row) -> None:
        tty = self.stdout.isatty()
        if options["watch"] and tty:
            self.stdout.write("\x1b[H\x1b[2J", ending="")
        if (tty or options["force_color"]) and not options["no_color"]:
            try:
                from rich.console import Console
            except ImportError:
                pass
            else:
                out: Any = self.stdout
                console = Console(file=out, force_terminal=True, highlight=False)
                for part in _rich(found):
                    console.print(part)
                return
        for line in _plain(found):
            self.stdout.write(line)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86400:
        from argparse import ArgumentTypeError

        raise ArgumentTypeError(f"{text!r} is no number of seconds from 0.1 to 86400")
    return seconds


# -- looking --------------------------------------------------------------------------------------


def look(alias: str) -> dict[str, Any]:
    """What PostgreSQL says about the database *alias*, by worker.

    Raises :exc:`CommandError` where there is nothing to look at, with the reason.
    """
    try:
        connection = connections[alias]
    except ConnectionDoesNotExist:
        known = ", ".join(connections)
        raise CommandError(f"There is no database {alias!r} in DATABASES: {known}.") from None
    except ImproperlyConfigured as exc:  # its driver is not installed, or there is no engine
        raise CommandError(f"Database {alias!r} cannot be used: {explain(exc)}") from None
    if connection.vendor != "postgresql":
        raise CommandError(
            f"Database {alias!r} is {connection.display_name}, and this command asks PostgreSQL. "
            "Lanes work with it all the same: lifeguard.django.status() shows them, in each "
            "process its own."
        )
    # Not the caller's connection, which may be in a transaction; nor one of its pool.
    apart = connection.copy(alias=NO_DB_ALIAS)
    try:
        with apart.cursor() as cursor:
            (limits,) = _rows(cursor, LIMITS)
            rows = _rows(cursor, CONNECTIONS)
    except (DatabaseError, ImproperlyConfigured) as exc:
        raise CommandError(f"Database {alias!r} does not answer: {explain(exc)}") from None
    finally:
        apart.close()
    return _sorted_out(alias, limits, rows)


def _rows(cursor: Any, query: str) -> list[dict[str, Any]]:
    cursor.execute(query)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _sorted_out(alias: str, limits: Row, rows: list[dict[str, Any]]) -> dict[str, Any]:
    workers: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    hidden = 0
    for row in rows:
        found = NAME.fullmatch(row.pop("application_name") or "")
        if row.pop("hidden"):
            hidden += 1
        if not found:
            continue
        lane = int(found["lane"]) if found["lane"] else None
        worker = (found["name"], found["host"], int(found["pid"]))
        workers.setdefault(worker, []).append({"lane": lane, **row})
    used = limits["used"] - 1  # without the connection that asks
    ours = sum(map(len, workers.values()))
    return {
        "database": {
            "alias": alias,
            "name": limits["database"],
            "role": limits["role"],
            "server_version": limits["server_version"],
        },
        "connections": {
            "max_connections": limits["max_connections"],
            "reserved": limits["reserved"],
            "lifeguard": ours,
            "others": used - ours,
            "free": limits["max_connections"] - limits["reserved"] - used,
        },
        "workers": [
            {
                "name": name,
                "host": host,
                "pid": pid,
                "connections": sorted(
                    workers[name, host, pid], key=lambda row: (row["lane"] is None, row["lane"])
                ),
            }
            for name, host, pid in sorted(workers)
        ],
        "hidden": hidden,
    }


# -- showing --------------------------------------------------------------------------------------


def _summary(found: Row) -> str:
    base, counts = found["database"], found["connections"]
    return (
        f"PostgreSQL {base['server_version'].partition(' ')[0]}, database {base['name']}: "
        f"{counts['lifeguard']} connections of lifeguard's workers, {counts['others']} of others, "
        f"{counts['free']} free of {counts['max_connections']} ({counts['reserved']} reserved)."
    )


def _notes(found: Row) -> list[str]:
    notes: list[str] = []
    if found["hidden"]:
        notes.append(
            f"{found['hidden']} connections belong to other roles, and role "
            f"{found['database']['role']} may not look into them. An administrator can allow it: "
            f"GRANT pg_read_all_stats TO {found['database']['role']}."
        )
    if not found["workers"]:
        notes.append(
            "No worker has a connection here now. Lanes connect when a request needs the database, "
            "and a worker that does not show then is not wrapped (manage.py check), or sets an "
            "application_name of its own."
        )
    return notes


def _heading(worker: Row) -> str:
    states: dict[str, int] = {}
    for row in worker["connections"]:
        state = row["state"] or "hidden"
        states[state] = states.get(state, 0) + 1
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f"{worker['name']}@{worker['host']} pid {worker['pid']}: {counts}"


def _cells(row: Row) -> tuple[str, ...]:
    waits = row["waits_for"] or ""
    if row["blocked_by"]:
        waits += ", held by " + ", ".join(map(str, row["blocked_by"]))
    return (
        "-" if row["lane"] is None else str(row["lane"]),
        str(row["backend"]),
        row["state"] or "hidden",
        _age(row["state_seconds"]),
        _age(row["transaction_seconds"]),
        row["command"] or "",
        waits,
    )


def _age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"


def _plain(found: Row) -> list[str]:
    lines = [_summary(found)]
    for worker in found["workers"]:
        table = [COLUMNS, *map(_cells, worker["connections"])]
        widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
        lines += ["", _heading(worker)]
        lines += [
            "  "
            + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in table
        ]
    for note in _notes(found):
        lines += ["", note]
    return lines


def _rich(found: Row) -> list[Any]:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = [Text(_summary(found))]
    styles = {"active": "green", "idle": "bright_black"}
    for worker in found["workers"]:
        title = Text(_heading(worker), style="bold")
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in COLUMNS:
            right = name in ("lane", "backend", "for", "transaction")
            last = name == COLUMNS[-1]  # the only one that is long
            table.add_column(name, justify="right" if right else "left", no_wrap=not last)
        for row in worker["connections"]:
            blocked = bool(row["blocked_by"])
            style = "bold red" if blocked else styles.get(row["state"] or "", "yellow")
            table.add_row(*map(Text, _cells(row)), style=style)
        parts.append(table)
    parts.extend(Text(note, style="yellow") for note in _notes(found))
    return parts
