"""`python -m lifeguard.cli`: the command, where the script is not on PATH."""

from __future__ import annotations

from lifeguard.cli import main

main()
