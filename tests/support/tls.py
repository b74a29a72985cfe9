"""A PostgreSQL that talks TLS. The binaries that come from PyPI were built without it."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import trustme

from lifeguard.testing import Postgres, PostgresError, postgres

ENV = "LIFEGUARD_TLS_BINARIES"
"""Names the ``bin`` folder of a PostgreSQL with TLS, where that is in no usual place."""

_PLACES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/pgsql*/bin",
)


def tls_binaries() -> Path:
    """The ``bin`` folder of a PostgreSQL with TLS. PostgresError if there is none."""
    places = [Path(named)] if (named := os.environ.get(ENV)) else []
    if (pg_ctl := shutil.which("pg_ctl")) is not None:
        places.append(Path(pg_ctl).resolve().parent)
    for pattern in _PLACES:
        places += map(Path, sorted(glob.glob(pattern), reverse=True))
    for folder in places:
        if (folder / "initdb").is_file() and _was_built_with_tls(folder):
            return folder
    raise PostgresError(
        "this test needs a PostgreSQL that was built with TLS, and there is none in "
        f"{', '.join(_PLACES)}. Install one with the package manager (Debian: "
        f"`apt-get install postgresql`), or name its bin folder: {ENV}=/path/to/bin"
    )


def _was_built_with_tls(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return b"SSL_CTX_new" in (folder / "postgres").read_bytes()  # it calls OpenSSL
    return False


@contextlib.contextmanager
def tls_postgres() -> Iterator[Postgres]:
    """A new PostgreSQL with a certificate of an authority made for it; ``dsn`` insists on TLS."""
    made = trustme.CA().issue_cert("127.0.0.1", "localhost")
    chain = b"".join(pem.bytes() for pem in made.cert_chain_pems)
    key = made.private_key_pem.bytes()
    with postgres(binaries=tls_binaries(), tls=(chain, key), max_connections=200) as server:
        yield server
