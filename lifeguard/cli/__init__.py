"""The `lifeguard` command. It needs nothing installed here, so it can say what is missing."""

from __future__ import annotations

import sys

NEEDS_EXTRA = (
    "lifeguard: the command line needs {missing}, which is not installed. "
    "Do: pip install 'lifeguard-pool[demo]'"
)
_EXTRA = frozenset({"typer", "click", "rich"})


def main() -> None:
    """Entry point of the `lifeguard` script."""
    try:
        from ._app import app
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        print(NEEDS_EXTRA.format(missing=missing), file=sys.stderr)
        raise SystemExit(2) from None
    app(prog_name="lifeguard")
