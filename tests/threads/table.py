"""The table of docs/threads.md: ``python -m tests.threads.table``.

Each cell is "without lifeguard / with it": connections that are left, or places of a pool of four
that are lost, while the threads are alive.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from lifeguard.testing import postgres
from tests.threads.columns import columns, ways_of
from tests.threads.kinds import KINDS
from tests.threads.ways import WAYS


def main() -> None:
    with postgres() as pg, tempfile.TemporaryDirectory() as folder:
        print("|", " | ".join(["", *KINDS]), "|")
        print("|---" * (len(KINDS) + 1) + "|")
        with columns(pg, Path(folder)) as table:
            for way in WAYS:
                cells = []
                for kind in KINDS:
                    if way not in ways_of(kind):
                        cells.append("")
                        continue
                    bare, guarded = table.both(kind, way)
                    cells.append(f"{shown(bare)} / {shown(guarded)}")
                print("|", " | ".join([way, *cells]), "|", flush=True)


def shown(cell: dict[str, int]) -> str:
    return str(cell.get("left", cell.get("lost")))


if __name__ == "__main__":
    main()
